"""From an encoded image to square uint8 pixels: the part of the augmentation that loader workers do. No torch.

The random numbers of a sample depend on (seed, epoch, sample) alone, so every rank and worker computes the same pixels.
Horizontal flip, normalisation, random erasing, Mixup and CutMix run on the device.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.augment.decode import EncodedImage, Pixels, as_pixels
from pipeline.augment.randaugment import RandAugment
from pipeline.config.schema import AugmentConfig
from pipeline.order import draws

_ATTEMPTS = 10
"""Crops that are drawn until one fits into the image, as in timm's `RandomResizedCropAndInterpolation`."""
_CROP_DRAWS = 4 * _ATTEMPTS + 1
"""Uniform numbers for a crop: area, aspect ratio, top and left of each attempt, and one for the interpolation."""
_SHRINKING = (1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.2, 2.6, 3.0)
"""Factors by which an image shrinks, at which `_TAPS` are given."""
_TAPS = {
    False: (
        (0.09, 0.10, 0.12, 0.16, 0.18, 0.22, 0.24, 0.248, 0.237, 0.222),
        (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.043, 0.085, 0.111),
    ),
    True: (
        (0.03, 0.04, 0.06, 0.08, 0.10, 0.16, 0.20, 0.310, 0.305, 0.268),
        (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -0.024, 0.016, 0.067),
    ),
}
"""Outer taps, all a and then all b, of the filter [b, a, 1 - 2a - 2b, a, b] that runs before OpenCV's bicubic resize.

The result approximates Pillow's antialiased bilinear (False) or bicubic (True) resize. The taps were fitted on
photographs; the results differ by 0.3 to 1.0 grey levels.
"""
_HALVING_FROM = 1.1
"""A crop is decoded at a reduced size that is still this many times the result's: 1.2 to 2.4 grey levels of error."""


class TrainAugment:
    """Random resized crop and RandAugment: drawn from timm's distributions, computed by OpenCV."""

    def __init__(self, config: AugmentConfig, image_size: int, seed: int) -> None:
        """Prepare the augmentation of a training.

        Args:
            config: configuration of the augmentation.
            image_size: height and width of the result.
            seed: seed of the training.

        Raises:
            PolicyError: `config.rand_augment` is not a description of RandAugment that is supported.
        """
        self._config, self._image_size, self._seed = config, image_size, seed
        self._policy = RandAugment.parse(config.rand_augment) if config.rand_augment else None
        red, green, blue = (min(255, round(255 * mean)) for mean in config.mean)
        self._fill = (red, green, blue)
        self._enough = round(image_size * _HALVING_FROM)

    def draw(self, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> list[list[float]]:
        """Draw the random numbers of samples.

        Args:
            epochs: int64 [N], epoch in which each sample is read.
            samples: int64 [N], row of each sample in the index.

        Returns:
            N lists of uniform numbers in [0, 1), each for one call of `__call__`.
        """
        drawn = [draws.uniforms(draws.key(self._seed, draws.Purpose.CROP, epochs, samples), _CROP_DRAWS)]
        if self._policy:
            keys = draws.key(self._seed, draws.Purpose.RAND_AUGMENT, epochs, samples)
            drawn.append(draws.uniforms(keys, self._policy.draws))
        return np.concatenate(drawn, axis=1).tolist()

    def __call__(self, encoded: bytes, drawn: Sequence[float], out: Pixels) -> None:
        """Augment one image.

        Args:
            encoded: content of the image file.
            drawn: uniform numbers of the sample, from `draw`.
            out: uint8 [image_size, image_size, 3], RGB, written.

        Raises:
            DecodeError: the image cannot be decoded.
        """
        image = EncodedImage(encoded)
        box = draw_crop(drawn, image.height, image.width, self._config)
        name = self._config.interpolation
        cubic = None if name == "random" else name == "bicubic"
        crop = image.crop(*box, self._enough)
        pixels = resize(crop, self._image_size, drawn[_CROP_DRAWS - 1] < 0.5 if cubic is None else cubic)
        if self._policy:
            pixels = self._policy(pixels, drawn[_CROP_DRAWS:], self._fill, cubic)
        out[:] = pixels


class EvaluationAugment:
    """The centre crop of `evaluation_pixels`, with the interface of `TrainAugment`."""

    def __init__(self, config: AugmentConfig, image_size: int) -> None:
        """Take the crop ratio from `config`; the result is `image_size` x `image_size` pixels."""
        self._crop, self._image_size = config.evaluation_crop, image_size

    def draw(self, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> list[None]:
        """Return a placeholder for each sample: nothing is random."""
        return [None] * len(samples)

    def __call__(self, encoded: bytes, drawn: None, out: Pixels) -> None:
        """Decode and crop one image; arguments and errors as in `TrainAugment.__call__`."""
        out[:] = evaluation_pixels(encoded, self._image_size, self._crop)


def draw_crop(uniforms: Sequence[float], height: int, width: int, config: AugmentConfig) -> tuple[int, int, int, int]:
    """Draw a random crop from the distribution of timm 1.0.31's `RandomResizedCropAndInterpolation`.

    The share of the area is uniform in `crop_scale`, the logarithm of the aspect ratio uniform in `crop_ratio`. If ten
    crops do not fit into the image, the crop is the largest central one with an allowed ratio.

    Args:
        uniforms: at least 40 uniform numbers in [0, 1).
        height: height of the image.
        width: width of the image.
        config: configuration of the augmentation.

    Returns:
        (top, left, height, width) in pixels.
    """
    area = height * width
    low, high = config.crop_scale
    log_low, log_high = (math.log(ratio) for ratio in config.crop_ratio)
    for attempt in range(_ATTEMPTS):
        u_area, u_ratio, u_top, u_left = uniforms[4 * attempt : 4 * attempt + 4]
        target = (low + (high - low) * u_area) * area
        ratio = math.exp(log_low + (log_high - log_low) * u_ratio)
        crop_width, crop_height = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            return (
                int(u_top * (height - crop_height + 1)),
                int(u_left * (width - crop_width + 1)),
                crop_height,
                crop_width,
            )
    narrowest, widest = min(config.crop_ratio), max(config.crop_ratio)
    crop_width = min(width, max(1, round(height * widest)))
    crop_height = min(height, max(1, round(width / narrowest)))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def resize(pixels: Pixels, size: int, cubic: bool) -> Pixels:
    """Resize to a square as Pillow does with antialiasing, to within a grey level.

    Args:
        pixels: uint8 [H, W, 3].
        size: height and width of the result.
        cubic: whether to interpolate bicubically instead of bilinearly.

    Returns:
        uint8 [size, size, 3].
    """
    height, width = pixels.shape[:2]
    shrinking = (height / size, width / size)
    if max(shrinking) > _SHRINKING[-1]:
        method = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
        return np.asarray(Image.fromarray(pixels).resize((size, size), method))
    # Where an axis grows or hardly shrinks, Pillow's bilinear is OpenCV's.
    smooth = not cubic and min(shrinking) < 1.05 and max(shrinking) < 1.8
    if max(shrinking) > 1:
        vertical, horizontal = (_antialiasing(round(factor, 2), cubic, smooth) for factor in shrinking)
        pixels = as_pixels(cv2.sepFilter2D(pixels, -1, horizontal, vertical, borderType=cv2.BORDER_REPLICATE))
    return as_pixels(cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR if smooth else cv2.INTER_CUBIC))


@lru_cache(maxsize=1024)
def _antialiasing(shrinking: float, cubic: bool, smooth: bool) -> NDArray[np.float32]:
    """Build the filter along an axis that shrinks by a factor: float32 [3] or [5].

    Args:
        shrinking: factor; up to 1 the filter changes nothing. It then has 3 taps: OpenCV is slower with a single one.
        cubic: whether the resize approximates Pillow's bicubic instead of its bilinear.
        smooth: whether OpenCV's bilinear resize follows, not its bicubic.
    """
    if shrinking <= 1:
        return np.array([0, 1, 0], np.float32)
    # With `smooth`: the variance of Pillow's triangle filter minus that of bilinear interpolation.
    outer, outermost = (
        ((shrinking**2 - 1) / 12, 0.0)
        if smooth
        else (float(np.interp(shrinking, _SHRINKING, taps)) for taps in _TAPS[cubic])
    )
    middle = 1 - 2 * outer - 2 * outermost
    taps = [outer, middle, outer] if outermost == 0 else [outermost, outer, middle, outer, outermost]
    return np.array(taps, np.float32)


def evaluation_pixels(encoded: bytes, image_size: int, crop: float) -> Pixels:
    """Decode and crop an image as the model is evaluated and served: timm's evaluation transform before normalisation.

    As timm 1.0.31's `transforms_imagenet_eval`: the shorter side is resized to `image_size / crop` pixels by Pillow's
    bicubic with antialiasing, and the central square of `image_size` pixels is kept.

    Args:
        encoded: content of the image file.
        image_size: height and width of the result.
        crop: share of the shorter side that is kept.

    Returns:
        uint8 [image_size, image_size, 3], RGB.

    Raises:
        DecodeError: the image cannot be decoded.
    """
    pixels = EncodedImage(encoded).pixels()
    height, width = pixels.shape[:2]
    side = math.floor(image_size / crop)
    if width <= height:
        new_width, new_height = side, int(side * height / width)
    else:
        new_width, new_height = int(side * width / height), side
    left, top = round((new_width - image_size) / 2), round((new_height - image_size) / 2)
    x, y = width / new_width, height / new_height
    box = (left * x, top * y, min(width, (left + image_size) * x), min(height, (top + image_size) * y))
    return np.asarray(
        Image.fromarray(pixels).resize((image_size, image_size), Image.Resampling.BICUBIC, box=box, reducing_gap=None)
    )
