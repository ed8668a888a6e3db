"""Objects of an image that is resized and flipped, as mmdetection 2.28 computes them. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["boxes_of", "corners", "flip_boxes", "mask_of", "resize_boxes", "resize_mask", "without_small"]


SLIVER = 0.01
"""Least side in pixels of the part of a box within its image: the logarithm of a vanishing side is no target."""


def boxes_of(objects: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
    """Return the boxes [G, 4] of objects with a COCO `bbox` (x, y, width, height): x1, y1, x2, y2 in pixels."""
    boxes = np.array([found["bbox"] for found in objects], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def corners(bbox: Sequence[float]) -> list[float]:
    """Return a COCO `bbox` (x, y, width, height) as a polygon: the mask of an object that has none."""
    x, y, width, height = bbox
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def without_small(boxes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which boxes [G, 4] have at least one pixel on each side, and a part within an image of (height, width)."""
    height, width = size
    inner = np.minimum(boxes[:, 2:], np.array([width, height], np.float32)) - np.maximum(boxes[:, :2], 0)
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.logical_and((sides >= 1).all(axis=1), (inner >= SLIVER).all(axis=1))


def resize_boxes(boxes: NDArray[np.float32], size: tuple[int, int], resized: tuple[int, int]) -> NDArray[np.float32]:
    """Return the boxes [G, 4] of an image of (height, width) after it is resized, cut at its sides.

    The two axes are scaled differently, because the sides of the resized image are rounded to whole pixels.
    """
    height, width = resized
    scale = np.array([width / size[1], height / size[0]] * 2, np.float32)
    return np.clip(boxes * scale, 0, np.array([width, height] * 2, np.float32))


def flip_boxes(boxes: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """Return the boxes [G, 4] of an image that is flipped left to right."""
    flipped = boxes.copy()
    flipped[:, 0], flipped[:, 2] = width - boxes[:, 2], width - boxes[:, 0]
    return flipped


def mask_of(segmentation: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the mask [H, W], 0 or 1, of a COCO `segmentation`: polygons, or run lengths in either form.

    Args:
        segmentation: polygons `[[x, y, x, y, ...], ...]` or `{"size": [H, W], "counts": ...}`.
        size: (height, width) of the image.
    """
    from faster_coco_eval.core import mask as coding

    height, width = size
    encoded = coding.frPyObjects(segmentation, height, width) if _is_plain(segmentation) else segmentation
    if isinstance(encoded, list):
        encoded = coding.merge(encoded)
    return np.ascontiguousarray(coding.decode(encoded), np.uint8)


def _is_plain(segmentation: Any) -> bool:
    return isinstance(segmentation, list) or isinstance(segmentation["counts"], list)


def resize_mask(mask: NDArray[np.uint8], resized: tuple[int, int]) -> NDArray[np.uint8]:
    """Return a mask [H, W] resized to (height, width) by nearest neighbour."""
    return np.asarray(cv2.resize(mask, resized[::-1], interpolation=cv2.INTER_NEAREST), np.uint8)
