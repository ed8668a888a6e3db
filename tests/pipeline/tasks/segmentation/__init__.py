"""Tests of pipeline.tasks.segmentation."""
