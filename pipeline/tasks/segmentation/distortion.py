"""Photometric distortion of an image, as mmsegmentation 0.30's `PhotoMetricDistortion`. No torch."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.augment.decode import Pixels, as_pixels

DRAWS = 9
"""Uniform numbers of a distortion: whether and how much for each of four parts, and when the contrast comes."""
_BRIGHTNESS = 32
_RANGE = (0.5, 1.5)
_HUE = 18


def distort(pixels: Pixels, uniforms: Sequence[float]) -> Pixels:
    """Change brightness, contrast, saturation and hue, each with probability 1/2, the contrast first or last.

    Args:
        pixels: uint8 [H, W, 3], RGB.
        uniforms: `DRAWS` numbers in [0, 1).
    """
    bright, delta, contrast_first, contrast, alpha, saturate, saturation, shift, hue = uniforms
    if bright >= 0.5:
        pixels = scale(pixels, 1.0, _BRIGHTNESS * (2 * delta - 1))
    contrasted = contrast >= 0.5
    if contrasted and contrast_first >= 0.5:
        pixels = scale(pixels, _between(alpha), 0.0)
    if saturate >= 0.5:
        pixels = change_saturation(pixels, _between(saturation))
    if shift >= 0.5:
        pixels = change_hue(pixels, int(hue * 2 * _HUE) - _HUE)
    if contrasted and contrast_first < 0.5:
        pixels = scale(pixels, _between(alpha), 0.0)
    return pixels


def _between(u: float) -> float:
    return _RANGE[0] + (_RANGE[1] - _RANGE[0]) * u


def scale(pixels: Pixels, alpha: float, beta: float) -> Pixels:
    """Return `alpha * pixels + beta` in fp32, limited to 0 … 255 and cut to integers."""
    return as_pixels(cv2.LUT(pixels, _table(alpha, beta)))


def _table(alpha: float, beta: float) -> NDArray[np.uint8]:
    return np.clip(np.arange(256, dtype=np.float32) * np.float32(alpha) + np.float32(beta), 0, 255).astype(np.uint8)


def change_saturation(pixels: Pixels, alpha: float) -> Pixels:
    """Multiply the saturation by a factor."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = cv2.LUT(np.ascontiguousarray(hsv[..., 1]), _table(alpha, 0.0))
    return as_pixels(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))


def change_hue(pixels: Pixels, degrees: int) -> Pixels:
    """Turn the hue by twice this many degrees: OpenCV's hue has 180 values."""
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    table = ((np.arange(256) + degrees) % 180).astype(np.uint8)
    hsv[..., 0] = cv2.LUT(np.ascontiguousarray(hsv[..., 0]), table)
    return as_pixels(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
