"""A sample of a classification: the pixels of its image, and the label in the index. No torch unless asked for."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.augment.decode import Pixels
from pipeline.augment.transforms import EvaluationAugment, TrainAugment
from pipeline.tasks.layout import SampleSpec, Slot


class ImageAugment(Protocol):
    """An augmentation of images alone: first the random numbers of many samples, then the pixels of each."""

    def draw(self, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> Sequence[Any]:
        """Draw the random numbers of each sample, as a function of (seed, epoch, sample)."""
        ...

    def __call__(self, encoded: bytes, drawn: Any, out: Pixels) -> None:
        """Decode and augment one image into `out`, uint8 [H, W, 3], RGB.

        Raises:
            DecodeError: the image cannot be decoded.
        """
        ...


class LabelledAugment:
    """The augmentation of a classification (`pipeline.tasks.layout.SampleAugment`)."""

    def __init__(self, spec: SampleSpec) -> None:
        """Build the augmentation that a spec asks for."""
        self._augment = _build(spec)
        self.draw = self._augment.draw

    def fill(self, encoded: bytes, target: Any, drawn: Any, slot: Slot, position: int) -> None:
        """Write the pixels and the label of a sample."""
        self._augment(encoded, drawn, slot.pixels[position])
        slot.labels[position] = target


def _build(spec: SampleSpec) -> ImageAugment:
    if spec.training and spec.augment.mode == "faithful":
        from pipeline.augment.timm_transforms import FaithfulAugment  # imports torch, which the others do without

        return FaithfulAugment(spec.augment, spec.image_size, spec.seed)
    if spec.training:
        return TrainAugment(spec.augment, spec.image_size, spec.seed)
    return EvaluationAugment(spec.augment, spec.image_size)
