"""Sizes and places of a segmentation's images, as mmsegmentation 0.30 computes them. No torch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.tasks.sizes import fit

TRIES = 10
"""Crops of which one class may fill too much; the next one is taken as it is."""
CROP_DRAWS = 2 * (TRIES + 1)
"""Uniform numbers for the crops of a sample: top and left of each."""


def draw_size(
    height: int, width: int, scale: tuple[int, int], ratios: tuple[float, float], u: float
) -> tuple[int, int]:
    """Return the size of a training image: `fit` into `scale` times a factor, both sides cut to whole pixels.

    Args:
        height: of the image.
        width: of the image.
        scale: longest and shortest side.
        ratios: smallest and largest factor.
        u: uniform number in [0, 1).
    """
    ratio = ratios[0] + (ratios[1] - ratios[0]) * u
    return fit(height, width, (int(scale[0] * ratio), int(scale[1] * ratio)))


def stretched(height: int, width: int, divisor: int) -> tuple[int, int]:
    """Return the next larger sides that are multiples of `divisor`."""
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def draw_crop(
    labels: NDArray[np.uint8], side: int, most: float, uniforms: Sequence[float], ignored: int
) -> tuple[int, int]:
    """Return top and left of a crop in which no class has more than a share of the labelled pixels.

    A crop of one class, or where a class has at least `most` of the pixels, is drawn again, up to ten times.

    Args:
        labels: uint8 [H, W], classes of the resized image.
        side: of the crop; a smaller image is not cut.
        most: greatest share of a class.
        uniforms: `CROP_DRAWS` numbers in [0, 1).
        ignored: class that is not counted.
    """
    height, width = labels.shape
    rows, columns = max(height - side, 0) + 1, max(width - side, 0) + 1
    top = left = 0
    for attempt in range(TRIES + 1):
        top, left = int(uniforms[2 * attempt] * rows), int(uniforms[2 * attempt + 1] * columns)
        if most >= 1:
            break
        counts = np.bincount(labels[top : top + side, left : left + side].ravel(), minlength=256)
        counts[ignored] = 0
        if np.count_nonzero(counts) > 1 and counts.max() / counts.sum() < most:
            break
    return top, left
