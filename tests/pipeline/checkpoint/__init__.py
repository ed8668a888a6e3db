"""Tests of pipeline.checkpoint."""
