"""The operations of timm's RandAugment, by OpenCV; on average within a grey level of those of Pillow, which timm uses.

Each takes pixels (uint8 [H, W, 3], RGB), its argument and how to resample, and returns pixels of the same shape; it
never writes its input. The operations truncate where Pillow truncates, and sample at pixel centres as Pillow does.
Source: timm 1.0.31, `timm/data/auto_augment.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.augment.decode import Pixels, as_pixels


@dataclass(frozen=True)
class Resampling:
    """How geometric operations resample.

    Attributes:
        cubic: whether to interpolate bicubically instead of bilinearly.
        fill: RGB colour for places outside the image.
    """

    cubic: bool
    fill: tuple[int, int, int]


Operation = Callable[[Pixels, float, Resampling], Pixels]
"""A function of pixels, argument and resampling."""
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in grey (ITU-R BT.601, as Pillow's mode L)."""
_TRUNCATE = -0.499
"""Added where Pillow truncates and OpenCV rounds: a little less than half, so that whole numbers stay."""
_SHARPEN, _KEEP = np.array([-0.053, 1.106, -0.053], np.float32), np.array([0, 1, 0], np.float32)
"""Filters along an axis: `_affine` sharpens the axes on which it interpolates."""


def auto_contrast(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Stretch the values of each channel to 0 … 255."""
    return _by_channel(pixels, _stretch_channel)


def equalize(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Make the histogram of each channel flat."""
    return _by_channel(pixels, _equalize_channel)


def invert(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Replace each value by 255 minus the value."""
    return as_pixels(cv2.bitwise_not(pixels))


def posterize(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Keep the `argument` highest bits of each value."""
    return pixels & np.uint8(256 - (1 << (8 - int(argument)))) if argument < 8 else pixels


def solarize(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Invert the values that are at least `argument`."""
    _, inverted = cv2.threshold(pixels, math.ceil(argument) - 1, 255, cv2.THRESH_BINARY)
    return as_pixels(cv2.bitwise_xor(pixels, inverted))


def solarize_add(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Add `argument` to the values below 128."""
    _, added = cv2.threshold(pixels, 127, int(argument), cv2.THRESH_BINARY_INV)
    return as_pixels(cv2.add(pixels, added))


def brightness(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Multiply each value by `argument`."""
    return as_pixels(cv2.convertScaleAbs(pixels, alpha=argument, beta=_TRUNCATE))


def contrast(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Multiply each value's difference from the image's mean grey by `argument`."""
    mean = int(float(np.dot(_GREY, cv2.mean(pixels)[:3])) + 0.5)
    return as_pixels(cv2.addWeighted(pixels, argument, pixels, 0, mean * (1 - argument) + _TRUNCATE))


def color(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Multiply each value's difference from its pixel's grey by `argument`."""
    grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return as_pixels(cv2.addWeighted(pixels, argument, grey, 1 - argument, _TRUNCATE))


def sharpness(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Multiply the difference from the smoothed image by `argument`; the outermost pixels stay as they are."""
    # Pillow's smoothing filter has the weights 5/13 in the middle and 1/13 around it: 9/13 of the mean of all nine
    # pixels plus 4/13 of the middle one.
    share = (1 - argument) * 9 / 13
    sharp = as_pixels(cv2.addWeighted(pixels, 1 - share, cv2.blur(pixels, (3, 3)), share, _TRUNCATE))
    sharp[0], sharp[-1], sharp[:, 0], sharp[:, -1] = pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]
    return sharp


def rotate(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Rotate by `argument` degrees counter-clockwise about the centre."""
    angle = -math.radians(argument)
    cos, sin = math.cos(angle), math.sin(angle)
    y, x = pixels.shape[0] / 2, pixels.shape[1] / 2
    return _affine(pixels, (cos, sin, x - cos * x - sin * y), (-sin, cos, y + sin * x - cos * y), resampling)


def shear_x(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Shift each row to the left by `argument` times its distance from the top."""
    return _affine(pixels, (1, argument, 0), (0, 1, 0), resampling)


def shear_y(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Shift each column upwards by `argument` times its distance from the left."""
    return _affine(pixels, (1, 0, 0), (argument, 1, 0), resampling)


def translate_x(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Shift to the left by `argument` times the width."""
    return _translate(pixels, 1, argument * pixels.shape[1], resampling)


def translate_y(pixels: Pixels, argument: float, resampling: Resampling) -> Pixels:
    """Shift upwards by `argument` times the height."""
    return _translate(pixels, 0, argument * pixels.shape[0], resampling)


def _translate(pixels: Pixels, axis: int, shift: float, resampling: Resampling) -> Pixels:
    """Shift towards the start of an axis: whole pixels by copying, the fraction by a filter of two or four taps.

    Args:
        pixels: uint8 [H, W, 3].
        axis: 0 shifts upwards, 1 to the left.
        shift: distance in pixels.
        resampling: interpolation and fill colour.
    """
    size = pixels.shape[axis]
    whole = math.floor(shift)
    begin, end = max(0, math.ceil(-0.5 - shift)), min(size, math.ceil(size - 0.5 - shift))
    if begin >= end:
        return np.full_like(pixels, resampling.fill)
    margins = (2, 2, 0, 0) if axis == 0 else (0, 0, 2, 2)
    padded = as_pixels(cv2.copyMakeBorder(pixels, *margins, borderType=cv2.BORDER_REPLICATE))

    def tap(number: int) -> Pixels:
        """Return the input pixels `number` places beyond the whole shift, for all output pixels that are not filled."""
        stretch = slice(begin + whole + number + 2, end + whole + number + 2)
        return padded[stretch] if axis == 0 else padded[:, stretch]

    d = shift - whole
    if resampling.cubic:
        # Pillow's cubic filter (a = -1) has four taps: the inner two sum to 1 + d (1 - d), the outer two to the rest.
        outer = d * (1 - d)
        middle = cv2.addWeighted(tap(0), 1 - d, tap(1), d, 0)
        around = cv2.addWeighted(tap(-1), 1 - d, tap(2), d, 0)
        shifted = cv2.addWeighted(middle, 1 + outer, around, -outer, _TRUNCATE)
    else:
        shifted = cv2.addWeighted(tap(0), 1 - d, tap(1), d, _TRUNCATE)
    margins = (begin, size - end, 0, 0) if axis == 0 else (0, 0, begin, size - end)
    return as_pixels(cv2.copyMakeBorder(shifted, *margins, cv2.BORDER_CONSTANT, value=resampling.fill))


def _affine(
    pixels: Pixels,
    row_x: tuple[float, float, float],
    row_y: tuple[float, float, float],
    resampling: Resampling,
) -> Pixels:
    """Sample the image at x' = a x + b y + c, y' = d x + e y + f, where pixel i has its centre at i + 0.5.

    Bicubic interpolation is approximated: the image is enlarged to twice its size along the axes where fractions of a
    pixel occur, and interpolated bilinearly. It is sharpened a little before, because linear interpolation flattens the
    cubic's extrema. That is as close to Pillow as OpenCV's own bicubic, and several times faster. The image gets a
    fourth channel, because OpenCV warps four channels faster than three.

    Args:
        pixels: uint8 [H, W, 3].
        row_x: (a, b, c).
        row_y: (d, e, f).
        resampling: interpolation and fill colour.
    """
    matrix = np.array([row_x, row_y], np.float64)
    matrix[:, 2] += 0.5 * (matrix[:, 0] + matrix[:, 1] - 1)
    height, width = pixels.shape[:2]
    if resampling.cubic:
        across, down = (1 if row == unit else 2 for row, unit in ((row_x, (1, 0, 0)), (row_y, (0, 1, 0))))
        row, column = (_SHARPEN if times == 2 else _KEEP for times in (across, down))
        pixels = as_pixels(cv2.sepFilter2D(pixels, -1, row, column, delta=_TRUNCATE, borderType=cv2.BORDER_REPLICATE))
        pixels = as_pixels(cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA))
        pixels = as_pixels(cv2.resize(pixels, (across * width, down * height), interpolation=cv2.INTER_CUBIC))
        matrix *= [[across], [down]]
        matrix[:, 2] += (0.5 * (across - 1), 0.5 * (down - 1))
    else:
        pixels = as_pixels(cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA))
    warped = cv2.warpAffine(
        pixels,
        matrix,
        (width, height),
        flags=cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=resampling.fill,
    )
    return as_pixels(cv2.cvtColor(warped, cv2.COLOR_RGBA2RGB))


def _stretch_channel(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Map the least value of a channel (uint8 [H, W]) to 0 and the greatest to 255, truncated in between."""
    low, high, _, _ = cv2.minMaxLoc(plane)
    if high <= low:
        return plane
    scale = 255.0 / (high - low)
    return as_pixels(cv2.convertScaleAbs(plane, alpha=scale, beta=_TRUNCATE - low * scale))


def _equalize_channel(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Equalise the histogram of a channel (uint8 [H, W]) with integer arithmetic, as Pillow's `ImageOps.equalize`."""
    counts = cv2.calcHist([plane], [0], None, [256], [0, 256]).reshape(-1).astype(np.int64)
    step = (plane.size - int(counts[int(cv2.minMaxLoc(plane)[1])])) // 255
    if not step:
        return plane
    table = (step // 2 + np.cumsum(counts) - counts) // step
    return as_pixels(cv2.LUT(plane, np.minimum(table, 255).astype(np.uint8)))


def _by_channel(pixels: Pixels, change: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> Pixels:
    """Apply `change` to each channel."""
    return as_pixels(cv2.merge([change(as_pixels(plane)) for plane in cv2.split(pixels)]))
