"""Tests of pipeline.augment."""
