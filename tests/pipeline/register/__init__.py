"""Tests of pipeline.register."""
