"""The operations of timm's RandAugment on uint8 arrays, by OpenCV: within a grey level of Pillow's on average.

Each takes pixels (uint8 [H, W, 3], RGB), its argument, and how it resamples; and returns pixels of the same shape.
What Pillow truncates is truncated, and where Pillow samples at pixel centres so does this.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.decode import Pixels, as_pixels


@dataclass(frozen=True)
class Resampling:
    """How geometric operations resample.

    Attributes:
        cubic: bicubic instead of bilinear.
        fill: colour of what comes from outside the image.
    """

    cubic: bool
    fill: tuple[int, int, int]


Operation = Callable[[Pixels, float, Resampling], Pixels]

_LEVELS = np.arange(256)
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def auto_contrast(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Stretch each channel to 0 … 255."""
    low, high = np.array([cv2.minMaxLoc(plane)[:2] for plane in cv2.split(pixels)]).T
    flat = high <= low
    scale = 255.0 / np.where(flat, 1.0, high - low)
    table = np.where(flat, _LEVELS[:, None], _LEVELS[:, None] * scale - low * scale)
    return _by_channel(pixels, table)


def equalize(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Make the histogram of each channel flat."""
    table = np.empty((256, 3))
    for channel in range(3):
        counts = cv2.calcHist([pixels], [channel], None, [256], [0, 256]).reshape(-1).astype(np.int64)
        step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
        table[:, channel] = (step // 2 + np.cumsum(counts) - counts) // step if step else _LEVELS
    return _by_channel(pixels, table)


def invert(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """255 minus each value."""
    return as_pixels(cv2.bitwise_not(pixels))


def posterize(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Keep the `argument` highest bits."""
    return _by_level(pixels, _LEVELS & ~((1 << (8 - int(argument))) - 1)) if argument < 8 else pixels


def solarize(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Invert values from `argument` up."""
    return _by_level(pixels, np.where(argument > _LEVELS, _LEVELS, 255 - _LEVELS))


def solarize_add(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Add `argument` to values below 128."""
    return _by_level(pixels, np.where(_LEVELS < 128, _LEVELS + int(argument), _LEVELS))


def brightness(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Multiply by `argument`."""
    return _by_level(pixels, _LEVELS * argument)


def contrast(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Multiply the distance to the image's mean grey by `argument`."""
    mean = int(float(np.dot(_GREY, cv2.mean(pixels)[:3])) + 0.5)
    return _by_level(pixels, mean + argument * (_LEVELS - mean))


def color(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Multiply the distance of each pixel to its grey by `argument`."""
    grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    # OpenCV rounds where Pillow truncates.
    return as_pixels(cv2.addWeighted(pixels, argument, grey, 1 - argument, -0.5))


def sharpness(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Multiply the distance to the smoothed image by `argument`; the outermost pixels stay."""
    kernel = np.full((3, 3), (1 - argument) / 13, np.float32)
    kernel[1, 1] = argument + (1 - argument) * 5 / 13
    sharp = as_pixels(cv2.filter2D(pixels, -1, kernel, delta=-0.5))
    sharp[0], sharp[-1], sharp[:, 0], sharp[:, -1] = pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]
    return sharp


def rotate(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Rotate by `argument` degrees counter-clockwise about the centre."""
    angle = -math.radians(argument)
    cos, sin = math.cos(angle), math.sin(angle)
    y, x = pixels.shape[0] / 2, pixels.shape[1] / 2
    return _affine(pixels, (cos, sin, x - cos * x - sin * y), (-sin, cos, y + sin * x - cos * y), resampling)


def shear_x(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Shift each row by `argument` times its height."""
    return _affine(pixels, (1, argument, 0), (0, 1, 0), resampling)


def shear_y(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Shift each column by `argument` times its distance from the left."""
    return _affine(pixels, (1, 0, 0), (argument, 1, 0), resampling)


def translate_x(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Shift to the left by `argument` of the width."""
    return _translate(pixels, 1, argument * pixels.shape[1], resampling)


def translate_y(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Shift upwards by `argument` of the height."""
    return _translate(pixels, 0, argument * pixels.shape[0], resampling)


def _translate(pixels: Pixels, axis: int, shift: float, resampling: Resampling) -> Pixels:
    """Shift against an axis: the fraction of a pixel by a filter of four taps, the rest by copying."""
    whole = math.floor(shift)
    d = shift - whole
    if resampling.cubic:
        taps = (-d + 2 * d**2 - d**3, 1 - 2 * d**2 + d**3, d + d**2 - d**3, d**3 - d**2)
    else:
        taps = (0, 1 - d, d, 0)
    kernel = np.array([taps] if axis else [[tap] for tap in taps], np.float32)
    anchor = (1, 0) if axis else (0, 1)
    # OpenCV rounds where Pillow truncates.
    filtered = cv2.filter2D(pixels, -1, kernel, anchor=anchor, delta=-0.5, borderType=cv2.BORDER_REPLICATE)
    result = np.empty_like(pixels)
    result[:] = resampling.fill
    size = pixels.shape[axis]
    begin, end = max(0, math.ceil(-0.5 - shift)), min(size, math.ceil(size - 0.5 - shift))
    target, source = np.moveaxis(result, axis, 0), np.moveaxis(as_pixels(filtered), axis, 0)
    if begin + whole < 0:
        target[begin] = np.moveaxis(pixels, axis, 0)[0]
        begin += 1
    if begin < end:
        target[begin:end] = source[begin + whole : end + whole]
    return result


def _affine(
    pixels: Pixels,
    row_x: tuple[float, float, float],
    row_y: tuple[float, float, float],
    resampling: Resampling,
) -> Pixels:
    """Sample at x' = a x + b y + c, y' = d x + e y + f, where pixel i has its centre at i + 0.5.

    Pillow's bicubic kernel overshoots more than OpenCV's (a = -1 against -0.75): the difference between bicubic and
    bilinear is stretched by a third to meet it. Bilinear runs on four channels, which OpenCV does three times faster.
    """
    matrix = np.array([row_x, row_y], np.float64)
    matrix[:, 2] += 0.5 * (matrix[:, 0] + matrix[:, 1] - 1)
    padded = as_pixels(cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA))
    bilinear = cv2.cvtColor(_warp(padded, matrix, cv2.INTER_LINEAR, resampling.fill), cv2.COLOR_RGBA2RGB)
    if not resampling.cubic:
        return as_pixels(bilinear)
    bicubic = _warp(pixels, matrix, cv2.INTER_CUBIC, resampling.fill)
    return as_pixels(cv2.addWeighted(bicubic, 4 / 3, bilinear, -1 / 3, -0.5))


def _warp(pixels: Pixels, matrix: NDArray[np.float64], method: int, fill: tuple[int, int, int]) -> Pixels:
    """`cv2.warpAffine` to the same size, by the matrix that leads from the result to the source."""
    return as_pixels(
        cv2.warpAffine(
            pixels,
            matrix,
            (pixels.shape[1], pixels.shape[0]),
            flags=cv2.WARP_INVERSE_MAP | method,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=fill,
        )
    )


def _by_level(pixels: Pixels, table: NDArray[np.floating | np.integer]) -> Pixels:
    """Look each value up in a table [256], truncated and clipped."""
    return as_pixels(cv2.LUT(pixels, np.clip(table, 0, 255).astype(np.uint8)))


def _by_channel(pixels: Pixels, table: NDArray[np.floating]) -> Pixels:
    """Look each value up in its channel's column of a table [256, 3], truncated and clipped."""
    return as_pixels(cv2.LUT(pixels, np.clip(table, 0, 255).astype(np.uint8)[None]))
