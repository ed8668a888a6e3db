"""Tests of pipeline.tasks."""
