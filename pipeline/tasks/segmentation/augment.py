"""A sample of a segmentation: from encoded image and label map to a crop, or to the whole image. No torch.

All random numbers of a sample depend on (seed, epoch, sample) alone, so every rank and worker computes the same crops.
Normalisation runs on the device.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.augment.decode import DecodeError, EncodedImage, Pixels, as_pixels
from pipeline.order import draws
from pipeline.tasks.layout import SampleSpec, Slot
from pipeline.tasks.segmentation import distortion, geometry
from sharding import ImageError
from sharding.label_maps import read_label_map

IGNORED = 255
"""Class of a pixel that belongs to none."""
PADDING = 254
"""Class of a pixel beside a smaller image; on the device it becomes `IGNORED`, and its colours 0."""


def read_sample(encoded: bytes, target: bytes, class_of: NDArray[np.uint8]) -> tuple[Pixels, NDArray[np.uint8]]:
    """Decode an image and its label map.

    Args:
        encoded: content of the image file.
        target: content of the label map.
        class_of: uint8 [256], class of each value of a pixel.

    Returns:
        Pixels uint8 [H, W, 3], RGB, and classes uint8 [H, W].

    Raises:
        DecodeError: one of the two cannot be decoded, or their sizes differ.
    """
    pixels = EncodedImage(encoded).pixels()
    height, width = pixels.shape[:2]
    try:
        values = read_label_map(target, width, height)
    except ImageError as error:
        raise DecodeError(f"cannot be used: {error}") from error
    return pixels, np.asarray(cv2.LUT(values, class_of), np.uint8)


class TrainCrops:
    """Random size, crop, flip and distortion, in mmsegmentation's order (`pipeline.tasks.layout.SampleAugment`)."""

    def __init__(self, spec: SampleSpec) -> None:
        """Take sizes, probabilities and seed from a spec."""
        self._options, self._flip, self._seed = spec.segmentation, spec.augment.horizontal_flip, spec.seed
        self._class_of = np.frombuffer(spec.class_of, np.uint8)

    def draw(self, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> list[list[float]]:
        """Draw the random numbers of samples: size, flip, crops, distortion."""
        places = draws.uniforms(draws.key(self._seed, draws.Purpose.SEGMENT, epochs, samples), 2 + geometry.CROP_DRAWS)
        colours = draws.uniforms(draws.key(self._seed, draws.Purpose.DISTORT, epochs, samples), distortion.DRAWS)
        return np.concatenate([places, colours], axis=1).tolist()

    def fill(self, encoded: bytes, target: Any, drawn: Sequence[float], slot: Slot, position: int) -> None:
        """Write a crop and its classes; what lies beside a smaller image is `PADDING`."""
        options, side = self._options, self._options.crop_size
        pixels, labels = read_sample(encoded, target, self._class_of)
        height, width = labels.shape
        size = geometry.draw_size(height, width, options.scale, options.scale_ratio, drawn[0])
        pixels, labels = resize(pixels, labels, size)
        crops = drawn[2 : 2 + geometry.CROP_DRAWS]
        top, left = geometry.draw_crop(labels, side, options.cat_max_ratio, crops, IGNORED)
        pixels, labels = pixels[top : top + side, left : left + side], labels[top : top + side, left : left + side]
        if drawn[1] < self._flip:
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        if options.photometric_distortion:
            pixels = distortion.distort(np.ascontiguousarray(pixels), drawn[-distortion.DRAWS :])
        height, width = labels.shape
        out, classes = slot.pixels[position], slot.labels[position]
        if (height, width) != (side, side):
            out[:], classes[:] = 0, PADDING
        out[:height, :width], classes[:height, :width] = pixels, labels


class WholeImages:
    """The whole image in the size of the evaluation, and its classes in their own size."""

    def __init__(self, spec: SampleSpec) -> None:
        """Take the sizes from a spec."""
        self._scale, self._divisor = spec.segmentation.scale, spec.segmentation.divisor
        self._class_of = np.frombuffer(spec.class_of, np.uint8)

    def draw(self, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> list[None]:
        """Return a placeholder for each sample: nothing is random."""
        return [None] * len(samples)

    def fill(self, encoded: bytes, target: Any, drawn: None, slot: Slot, position: int) -> None:
        """Write the resized image and the classes, and their sizes."""
        pixels, labels = read_sample(encoded, target, self._class_of)
        pixels = evaluation_pixels(pixels, self._scale, self._divisor)
        slot.sizes[position] = (*pixels.shape[:2], *labels.shape)
        slot.pixels[position, : pixels.size] = pixels.reshape(-1)
        slot.labels[position, : labels.size] = labels.reshape(-1)


def evaluation_pixels(pixels: Pixels, scale: tuple[int, int], divisor: int) -> Pixels:
    """Resize an image as it is evaluated and served: to fit into `scale`, then stretched to multiples of `divisor`."""
    height, width = pixels.shape[:2]
    fitting = geometry.fit(height, width, scale)
    for height, width in (fitting, geometry.stretched(*fitting, divisor)):
        if pixels.shape[:2] != (height, width):
            pixels = as_pixels(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR))
    return pixels


def resize(pixels: Pixels, labels: NDArray[np.uint8], size: tuple[int, int]) -> tuple[Pixels, NDArray[np.uint8]]:
    """Resize an image bilinearly and its classes by nearest neighbour to (height, width)."""
    if labels.shape == size:
        return pixels, labels
    to = (size[1], size[0])
    return (
        as_pixels(cv2.resize(pixels, to, interpolation=cv2.INTER_LINEAR)),
        as_pixels(cv2.resize(labels, to, interpolation=cv2.INTER_NEAREST)),
    )
