"""The objects of a training image as bytes: boxes, classes, and masks of one bit a pixel. No torch.

Masks are cut to their objects. A worker of the loader packs the objects into the memory that it shares with its rank,
and the rank unpacks them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Objects", "pack_objects", "unpack_objects"]

_HEAD = 2
"""Integers before the objects: their number, and whether they have masks."""


@dataclass(frozen=True)
class Objects:
    """The objects of an image.

    Attributes:
        boxes: float32 [G, 4], x1, y1, x2, y2 in pixels.
        labels: int64 [G].
        masks: uint8 [G, H, W], 0 or 1; None for a network that learns no masks.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.uint8] | None


def pack_objects(
    boxes: NDArray[np.float32], labels: NDArray[np.int64], masks: Iterable[NDArray[np.uint8]] | None
) -> bytes:
    """Pack objects; `masks` holds an array uint8 [H, W] for each."""
    parts = [
        np.array([len(labels), masks is not None], np.int32).tobytes(),
        boxes.astype(np.float32).tobytes(),
        labels.astype(np.int32).tobytes(),
    ]
    for mask in masks or ():
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        top, bottom = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        left, right = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
        parts.append(np.array([top, bottom, left, right], np.int32).tobytes())
        parts.append(np.packbits(mask[top:bottom, left:right]).tobytes())
    return b"".join(parts)


def unpack_objects(data: bytes, size: tuple[int, int]) -> Objects:
    """Undo `pack_objects` for an image of (height, width)."""
    count, has_masks = np.frombuffer(data, np.int32, _HEAD).tolist()
    at = 4 * _HEAD
    boxes = np.frombuffer(data, np.float32, 4 * count, at).reshape(count, 4)
    at += 16 * count
    labels = np.frombuffer(data, np.int32, count, at).astype(np.int64)
    at += 4 * count
    if not has_masks:
        return Objects(boxes, labels, None)
    masks = np.zeros((count, *size), np.uint8)
    for mask in masks:
        top, bottom, left, right = np.frombuffer(data, np.int32, 4, at).tolist()
        at += 16
        pixels = (bottom - top) * (right - left)
        packed = np.frombuffer(data, np.uint8, -(-pixels // 8), at)
        mask[top:bottom, left:right] = np.unpackbits(packed, count=pixels).reshape(bottom - top, right - left)
        at += len(packed)
    return Objects(boxes, labels, masks)
