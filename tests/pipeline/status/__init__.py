"""Tests of pipeline.status."""
