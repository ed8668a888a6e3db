"""Detection and instance segmentation: objects of resized images, and how results are measured."""

from pipeline.tasks.detection.average_precision import AveragePrecision, average_precision, encode_mask

__all__ = ["AveragePrecision", "average_precision", "encode_mask"]
