"""The answer of a segmentation over an image."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from pipeline.config.schema import AugmentConfig
from pipeline.tasks.normalise import Normalise
from pipeline.tasks.segmentation.augment import evaluation_pixels
from pipeline.tasks.segmentation.evaluation import predict
from pipeline.tasks.segmentation.picture import palette
from pipeline.tasks.task import Prepared

SHARE = 0.55
"""Share of the class's colour in a pixel."""
SIDE = 480
"""Longest side of the picture in pixels."""
NAMED = 0.02
"""Share of the pixels from which a class is named."""


@torch.no_grad()
def draw_overlay(
    network: nn.Module, prepared: Prepared, names: Sequence[str], pixels: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Colour each pixel of an image uint8 [H, W, 3] by its class, and name the largest classes where they are."""
    assert prepared.scale is not None
    assert prepared.divisor is not None
    resized = evaluation_pixels(pixels, prepared.scale, prepared.divisor)
    images = torch.from_numpy(resized.transpose(2, 0, 1)[None].copy())
    normalise = Normalise(AugmentConfig(mean=prepared.mean, std=prepared.std))
    labels = predict(network, normalise(images, torch.device("cpu")), (pixels.shape[0], pixels.shape[1]))[0].numpy()
    mixed = (1 - SHARE) * pixels + SHARE * palette(len(names))[labels]
    factor = SIDE / max(pixels.shape[:2])
    size = round(pixels.shape[1] * factor), round(pixels.shape[0] * factor)
    picture = Image.fromarray(np.rint(mixed).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for label in np.unique(labels).tolist():
        rows, columns = np.nonzero(labels == label)
        if len(rows) >= NAMED * labels.size:
            middle = np.argmin(np.abs(rows - np.median(rows)) + np.abs(columns - np.median(columns)))
            place = (float(columns[middle]) * factor, float(rows[middle]) * factor)
            text = names[int(label)].encode("latin-1", "replace").decode("latin-1")
            pen.text(place, text, "white", font, anchor="mm", stroke_width=2, stroke_fill="black")
    return np.asarray(picture)
