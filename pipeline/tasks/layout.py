"""How a micro-batch lies in memory, and how its samples are read into it. No torch: loader workers import this."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.config.schema import AugmentConfig, DetectionConfig, SegmentationConfig


@dataclass(frozen=True)
class Layout:
    """The arrays of a sample.

    Attributes:
        pixels: shape of the pixels, uint8; (bytes,) where each sample has a size of its own.
        labels: shape of the target; (elements,) where each sample has a size of its own.
        dtype: of the target, `int64` or `uint8`.
        varies: whether each sample has a size of its own; a batch then holds one sample.
        is_raw: whether each sample has a size of its own, and a batch holds the memory of its samples as it is.
    """

    pixels: tuple[int, ...]
    labels: tuple[int, ...]
    dtype: str
    varies: bool = False
    is_raw: bool = False


@dataclass(frozen=True)
class Slot:
    """Memory for one micro-batch of up to N samples.

    The rank writes `rows` and `epochs`; the loader workers write the rest.

    Attributes:
        pixels: uint8 [N, *layout.pixels], RGB.
        labels: [N, *layout.labels], target of each sample.
        rows: int64 [N], row of each sample in the index.
        epochs: int64 [N], epoch in which each sample is read.
        sizes: int64 [N, 4], where sizes vary: height and width of the pixels, and of the target; where batches are raw,
            height and width of the pixels, and bytes of the target.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[Any]
    rows: NDArray[np.int64]
    epochs: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def allocate(cls, samples: int, layout: Layout) -> "Slot":
        """Allocate a slot in the memory of this process."""
        return cls(
            np.empty((samples, *layout.pixels), np.uint8),
            np.empty((samples, *layout.labels), layout.dtype),
            np.empty(samples, np.int64),
            np.empty(samples, np.int64),
            np.zeros((samples, 4), np.int64),
        )

    def part(self, chunk: slice) -> "Slot":
        """Return the samples of a slice, in the same memory."""
        return Slot(self.pixels[chunk], self.labels[chunk], self.rows[chunk], self.epochs[chunk], self.sizes[chunk])

    def arrays(self, samples: int, layout: Layout) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Return pixels [N, H, W, 3] (raw: [N, bytes]) and targets of the first samples, in the same memory."""
        if not layout.varies:
            return self.pixels[:samples], self.labels[:samples]
        height, width, rows, columns = self.sizes[0].tolist()
        return (
            self.pixels[0, : height * width * 3].reshape(1, height, width, 3),
            self.labels[0, : rows * columns].reshape(1, rows, columns),
        )


class SampleSpec(Protocol):
    """What decides how a sample is read; `pipeline.data.reader.ReaderSpec` is one."""

    @property
    def augment(self) -> AugmentConfig:
        """Configuration of the augmentation."""
        ...

    @property
    def segmentation(self) -> SegmentationConfig:
        """Crops and sizes of a segmentation."""
        ...

    @property
    def detection(self) -> DetectionConfig:
        """Sizes of a detection."""
        ...

    @property
    def model(self) -> str:
        """Name of the network."""
        ...

    @property
    def image_size(self) -> int:
        """Height and width of a classified image."""
        ...

    @property
    def seed(self) -> int:
        """Seed of the training."""
        ...

    @property
    def training(self) -> bool:
        """Whether images are augmented for the training, or prepared for the evaluation."""
        ...

    @property
    def class_of(self) -> bytes:
        """Class of each of the 256 values that a stored target may have; empty where targets are labels."""
        ...


class SampleAugment(Protocol):
    """Reads samples into a slot: first the random numbers of many, then each."""

    def draw(self, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> Sequence[Any]:
        """Draw the random numbers of each sample, as a function of (seed, epoch, sample).

        Args:
            epochs: int64 [N], epoch in which each sample is read.
            samples: int64 [N], row of each sample in the index.

        Returns:
            N objects, one for each call of `fill`.
        """
        ...

    def fill(self, encoded: bytes, target: Any, drawn: Any, slot: Slot, position: int) -> None:
        """Decode and augment one sample.

        Args:
            encoded: content of the image file.
            target: the label in the index, or the content of the target's file.
            drawn: element of the result of `draw`.
            slot: memory of the micro-batch.
            position: of the sample in the slot.

        Raises:
            DecodeError: the image or the target cannot be decoded.
        """
        ...
