"""Semantic segmentation: a class for each pixel, measured by the mean intersection over union."""

from pipeline.tasks.segmentation.task import Segmentation

__all__ = ["TASK"]

TASK = Segmentation()
