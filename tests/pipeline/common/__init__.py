"""Tests of pipeline.common."""
