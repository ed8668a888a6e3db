"""Detection and instance segmentation: the objects of images, measured by COCO's average precision."""

from pipeline.tasks.detection.task import Detection

__all__ = ["TASK"]

TASK = Detection()
"""The task."""
