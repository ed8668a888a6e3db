"""Tests of pipeline.weights."""
