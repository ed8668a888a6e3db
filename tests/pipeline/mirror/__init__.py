"""Tests of pipeline.mirror."""
