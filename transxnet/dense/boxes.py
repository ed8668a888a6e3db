"""Boxes `[K, 4]` as x1, y1, x2, y2 in pixels: overlap, encoding against reference boxes, suppression of duplicates."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision import ops

__all__ = ["Detections", "box_iou", "clip_boxes", "decode_boxes", "encode_boxes", "suppress"]

LARGEST_LOG_RATIO = abs(math.log(16 / 1000))
"""A decoded side is at most 62.5 times the reference's, and at least 1 / 62.5."""
UNIT = (1.0, 1.0, 1.0, 1.0)


class Detections(NamedTuple):
    """What a network found in one image, in descending order of the scores.

    Attributes:
        boxes: `[D, 4]`, x1, y1, x2, y2 in pixels.
        scores: `[D]`, in (0, 1).
        labels: `[D]` int64, the class from 0.
        masks: `[D, H, W]` bool in the size of the image, or None for a network without masks.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None


def box_iou(truths: Tensor, boxes: Tensor) -> Tensor:
    """Return the intersection over union `[G, K]` of boxes `[G, 4]` and `[K, 4]`.

    The order of operations is upstream's, because an assignment compares overlaps for equality.
    """
    area_truths = (truths[:, 2] - truths[:, 0]) * (truths[:, 3] - truths[:, 1])
    area_boxes = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    low = torch.maximum(truths[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(truths[:, None, 2:], boxes[None, :, 2:])
    width, height = (high - low).clamp(min=0).unbind(-1)
    overlap = width * height
    union = area_truths[:, None] + area_boxes[None] - overlap
    return overlap / union.clamp(min=1e-6)


def encode_boxes(references: Tensor, truths: Tensor, stds: Sequence[float] = UNIT) -> Tensor:
    """Return the targets `[K, 4]` that lead from the references `[K, 4]` to the truths `[K, 4]`.

    They are the centre's move in sides of the reference and the log ratios of the sides, each divided by its `stds`.
    """
    centre, side = _centre_and_side(references)
    to_centre, to_side = _centre_and_side(truths)
    deltas = torch.cat(((to_centre - centre) / side, (to_side / side).log()), dim=-1)
    return deltas / deltas.new_tensor(stds)


def decode_boxes(references: Tensor, deltas: Tensor, stds: Sequence[float] = UNIT) -> Tensor:
    """Return the boxes `[..., 4]` that `deltas` `[..., 4]` make of the references `[..., 4]`: undo `encode_boxes`."""
    deltas = deltas * deltas.new_tensor(stds)
    centre, side = _centre_and_side(references)
    centre = centre + side * deltas[..., :2]
    side = side * deltas[..., 2:].clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()
    return torch.cat((centre - side * 0.5, centre + side * 0.5), dim=-1)


def _centre_and_side(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) * 0.5, boxes[..., 2:] - boxes[..., :2]


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return boxes `[..., 4]` cut at the sides of an image of `size` (height, width)."""
    height, width = size
    return torch.stack(
        tuple(boxes[..., k].clamp(0, (width, height)[k % 2]) for k in range(4)),
        dim=-1,
    )


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, iou: float, most: int) -> Tensor:
    """Return the indices of at most `most` boxes to keep, best first: non-maximum suppression within each group.

    A box is left out when it overlaps a better one of its group by more than `iou`. Groups are moved apart by an offset
    on the coordinates, as upstream does, so that one call serves all.

    Args:
        boxes: `[K, 4]`.
        scores: `[K]`; of equal scores the first comes first.
        groups: `[K]` integers: the class, or the level.
        iou: the largest overlap that stays.
        most: the number of boxes to keep.
    """
    if len(boxes) == 0:
        return groups.new_empty(0)
    offsets = groups.to(boxes.dtype) * (boxes.max() + 1)
    return ops.nms(boxes + offsets[:, None], scores, iou)[:most]
