"""Tests of pipeline.tasks.classification."""
