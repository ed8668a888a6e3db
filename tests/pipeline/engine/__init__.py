"""Tests of pipeline.engine."""
