"""Tests of pipeline.run."""
