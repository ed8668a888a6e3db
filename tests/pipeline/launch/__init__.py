"""Tests of pipeline.launch."""
