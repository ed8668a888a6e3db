"""timm's own training transforms, for comparison (`--train.augment.mode faithful`): several times slower than ours.

timm draws from the global generators of Python, NumPy and torch. They are seeded for each sample and restored
afterwards.
"""

import random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.transforms_factory import create_transform

from pipeline.augment.decode import EncodedImage, Pixels
from pipeline.config.schema import AugmentConfig
from pipeline.order import draws


class FaithfulAugment:
    """Decodes as the evaluation does, and augments with timm: random resized crop, flip, RandAugment; gives uint8."""

    def __init__(self, config: AugmentConfig, image_size: int, seed: int) -> None:
        """Build timm's transform; the arguments are those of `TrainAugment`."""
        self._seed = seed
        options: dict[str, Any] = {
            "scale": config.crop_scale,
            "ratio": config.crop_ratio,
            "hflip": config.horizontal_flip,
            "color_jitter": None,
            "auto_augment": config.rand_augment,
            "interpolation": config.interpolation,
            "mean": config.mean,
        }
        # With `use_prefetcher` the result is uint8 [3, H, W]; normalisation and erasing follow on the device.
        self._transform: Any = create_transform(image_size, is_training=True, use_prefetcher=True, **options)

    def draw(self, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> list[int]:
        """Draw one seed for each sample; arguments as in `TrainAugment.draw`."""
        return [int(key) for key in draws.key(self._seed, draws.Purpose.FAITHFUL, epochs, samples)]

    def __call__(self, encoded: bytes, drawn: int, out: Pixels) -> None:
        """Decode and augment one image; arguments and errors as in `TrainAugment.__call__`."""
        image = Image.fromarray(EncodedImage(encoded).pixels())
        states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
        try:
            random.seed(drawn)
            np.random.seed(drawn & 0xFFFFFFFF)
            torch.random.default_generator.manual_seed(drawn >> 1)
            array = np.asarray(self._transform(image))
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.random.set_rng_state(states[2])
        out[:] = array.transpose(1, 2, 0)
