"""The objects that a detection finds, drawn over an image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.config.schema import AugmentConfig
from pipeline.tasks.detection.augment import resized_pixels
from pipeline.tasks.detection.device import DIVISOR
from pipeline.tasks.detection.picture import SCORE, Drawn, draw_objects
from pipeline.tasks.normalise import Normalise
from pipeline.tasks.task import Prepared

SIDE = 480
"""Longest side of the picture in pixels."""


@torch.no_grad()
def draw_overlay(
    network: nn.Module, prepared: Prepared, names: Sequence[str], pixels: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Draw boxes, classes, scores and masks of the objects in an image uint8 [H, W, 3], as far as they are likely."""
    assert prepared.scale is not None
    resized = resized_pixels(pixels, prepared.scale)
    rows, columns = resized.shape[:2]
    normalise = Normalise(AugmentConfig(mean=prepared.mean, std=prepared.std))
    images = torch.zeros(1, 3, -(-rows // DIVISOR) * DIVISOR, -(-columns // DIVISOR) * DIVISOR)
    values = torch.from_numpy(resized.transpose(2, 0, 1)[None].copy())
    images[:, :, :rows, :columns] = normalise(values, torch.device("cpu"))
    detector: Any = network
    size = (pixels.shape[0], pixels.shape[1])
    [found] = detector.detect(images, [(rows, columns)], [size])
    likely = found.scores >= SCORE
    boxes = found.boxes[likely].clone()
    boxes[:, 2:] -= boxes[:, :2]
    labels, scores = found.labels[likely].tolist(), found.scores[likely].tolist()
    masks = [None] * len(labels) if found.masks is None else list(found.masks[likely].numpy())
    objects = [
        Drawn(box, label, f" {score:.2f}", mask)
        for box, label, score, mask in zip(boxes.tolist(), labels, scores, masks, strict=True)
    ]
    return np.asarray(draw_objects(pixels, size, objects, names, SIDE))
