"""Tests of pipeline.order."""
