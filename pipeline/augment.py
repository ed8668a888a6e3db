"""From encoded image to square uint8 pixels: the part of the augmentation that loader workers do. No torch.

What is drawn for a sample depends on (seed, epoch, sample) alone, so its pixels do not depend on who reads it. The
horizontal flip, the normalisation, random erasing and the mixing of images run on the device (`pipeline.mixup`).
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline import draws
from pipeline.config import AugmentConfig
from pipeline.decode import Pixels, decode

_ATTEMPTS = 10
"""Crops that are drawn before the largest fitting one is taken (timm's RandomResizedCropAndInterpolation)."""
_CROP_DRAWS = 4 * _ATTEMPTS + 1


class TrainAugment:
    """Random resized crop, as timm's `RandomResizedCropAndInterpolation` draws it."""

    def __init__(self, config: AugmentConfig, image_size: int, seed: int) -> None:
        """Prepare the augmentation of a training.

        Args:
            config: what is drawn.
            image_size: side of the square result.
            seed: of the training.
        """
        self.config, self.image_size, self.seed = config, image_size, seed

    def __call__(self, encoded: bytes, epoch: int, sample: int, out: Pixels) -> None:
        """Augment one image.

        Args:
            encoded: content of the image's file.
            epoch: in which it is read.
            sample: its row in the index.
            out: uint8 [image_size, image_size, 3], written.

        Raises:
            DecodeError: the bytes are no image.
        """
        pixels = decode(encoded)
        uniforms = draws.uniforms(draws.key(self.seed, draws.Purpose.CROP, epoch, sample), _CROP_DRAWS)
        height, width = pixels.shape[:2]
        top, left, crop_height, crop_width = draw_crop(uniforms, height, width, self.config)
        crop = pixels[top : top + crop_height, left : left + crop_width]
        name = self.config.interpolation
        cubic = name == "bicubic" or (name == "random" and uniforms[-1] < 0.5)
        resize(crop, self.image_size, cubic, out)


class EvaluationAugment:
    """The centre crop of `evaluation_pixels`, in the shape of an augmentation."""

    def __init__(self, config: AugmentConfig, image_size: int) -> None:
        """Take the crop from the config."""
        self._crop, self._image_size = config.evaluation_crop, image_size

    def __call__(self, encoded: bytes, epoch: int, sample: int, out: Pixels) -> None:
        """As `TrainAugment`; epoch and sample make no difference."""
        out[:] = evaluation_pixels(encoded, self._image_size, self._crop)


def draw_crop(
    uniforms: NDArray[np.float64], height: int, width: int, config: AugmentConfig
) -> tuple[int, int, int, int]:
    """Where to crop: (top, left, height, width) in pixels.

    Area is uniform in `crop_scale` and the logarithm of the aspect ratio uniform in `crop_ratio`; after ten that do not
    fit into the image, the largest central crop whose ratio is allowed.

    Args:
        uniforms: float64 [41], U[0, 1).
        height: of the image.
        width: of the image.
        config: of the augmentation.
    """
    area = height * width
    low, high = config.crop_scale
    log_low, log_high = (math.log(ratio) for ratio in config.crop_ratio)
    for attempt in range(_ATTEMPTS):
        u_area, u_ratio, u_top, u_left = uniforms[4 * attempt : 4 * attempt + 4].tolist()
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


def resize(pixels: Pixels, size: int, cubic: bool, out: Pixels) -> None:
    """Resize to a square.

    Args:
        pixels: uint8 [H, W, 3].
        size: side of the result.
        cubic: bicubic instead of bilinear, where pixels are added.
        out: uint8 [size, size, 3], written.
    """
    shrinks = pixels.shape[0] > size and pixels.shape[1] > size
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR
    cv2.resize(pixels, (size, size), dst=out, interpolation=method)


def evaluation_pixels(encoded: bytes, image_size: int, crop: float) -> Pixels:
    """Pixels of an image as the model is evaluated and served: timm's evaluation transform before normalisation.

    The shorter side becomes image_size / crop pixels (Pillow's bicubic, with antialiasing), and the centre is kept.

    Args:
        encoded: content of the image's file.
        image_size: side of the square result.
        crop: share of the shorter side that is kept.

    Returns:
        uint8 [image_size, image_size, 3].

    Raises:
        DecodeError: the bytes are no image.
    """
    pixels = decode(encoded)
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
