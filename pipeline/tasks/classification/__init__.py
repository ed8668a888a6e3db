"""Classification: one label for each image, measured by top-1."""

from pipeline.tasks.classification.task import Classification

__all__ = ["TASK"]

TASK = Classification()
