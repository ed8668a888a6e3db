"""A sample of a detection: from encoded image and objects to pixels, boxes and masks. No torch.

All random numbers of a sample depend on (seed, epoch, sample) alone. Normalisation and padding run on the device.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.augment.decode import DecodeError, EncodedImage, Pixels, as_pixels
from pipeline.order import draws
from pipeline.tasks.detection import geometry
from pipeline.tasks.detection.objects import pack_objects
from pipeline.tasks.layout import SampleSpec, Slot
from pipeline.tasks.sizes import fit

MASKED = "mask_rcnn_"
"""Beginning of the names of the networks that learn masks."""


def resized_pixels(pixels: Pixels, scale: tuple[int, int]) -> Pixels:
    """Resize an image, ratio kept, to fit into a longest and a shortest side."""
    size = fit(pixels.shape[0], pixels.shape[1], scale)
    if pixels.shape[:2] == size:
        return pixels
    return as_pixels(cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR))


class TrainImages:
    """Keep-ratio resize and flip, as upstream's recipes have them (`pipeline.tasks.layout.SampleAugment`)."""

    def __init__(self, spec: SampleSpec) -> None:
        """Take sizes, probability and seed from a spec."""
        self._options, self._flip, self._seed = spec.detection, spec.augment.horizontal_flip, spec.seed
        self._has_masks = spec.model.startswith(MASKED)

    def draw(self, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> list[float]:
        """Draw the uniform number of each sample's flip."""
        return draws.uniforms(draws.key(self._seed, draws.Purpose.DETECT, epochs, samples), 1)[:, 0].tolist()

    def fill(self, encoded: bytes, target: Any, drawn: float, slot: Slot, position: int) -> None:
        """Write pixels and objects.

        Raises:
            DecodeError: the image cannot be decoded, or the objects' masks need more memory than there is.
        """
        original = EncodedImage(encoded).pixels()
        size = (original.shape[0], original.shape[1])
        pixels = resized_pixels(original, self._options.scale)
        height, width = pixels.shape[:2]
        objects = learned(json.loads(target)["objects"], size)
        boxes = geometry.resize_boxes(geometry.boxes_of(objects), size, (height, width))
        is_flipped = drawn < self._flip
        if is_flipped:
            pixels, boxes = pixels[:, ::-1], geometry.flip_boxes(boxes, width)
        masks = self._masks(objects, size, (height, width), is_flipped) if self._has_masks else None
        labels = np.array([found["category"] for found in objects], np.int64)
        packed = pack_objects(boxes, labels, masks)
        room = slot.labels.shape[1]
        if len(packed) > room:
            raise DecodeError(
                f"has {len(objects):,} objects whose boxes and masks take {len(packed):,} bytes, more than the "
                f"{room:,} that there are: --train.detection.target-kb {-(-len(packed) // 1024)}"
            )
        slot.sizes[position] = (height, width, len(packed), 0)
        slot.pixels[position, : pixels.size] = pixels.reshape(-1)
        slot.labels[position, : len(packed)] = np.frombuffer(packed, np.uint8)

    @staticmethod
    def _masks(
        objects: Sequence[dict[str, Any]], size: tuple[int, int], resized: tuple[int, int], is_flipped: bool
    ) -> Iterator[NDArray[np.uint8]]:
        """Yield each mask by itself: those of a thousand objects would take a gigabyte."""
        for found in objects:
            mask = geometry.mask_of(found.get("segmentation") or [geometry.corners(found["bbox"])], size)
            mask = geometry.resize_mask(mask, resized)
            yield mask[:, ::-1] if is_flipped else mask


def learned(objects: Sequence[dict[str, Any]], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Return the objects of an image of (height, width) that a training learns: no crowds, none without a pixel."""
    single = [found for found in objects if not found["iscrowd"] and found["area"] > 0]
    keep = geometry.without_small(geometry.boxes_of(single), size)
    return [found for found, kept in zip(single, keep.tolist(), strict=True) if kept]


class WholeImages:
    """The resized image of the evaluation, and KEY.json as it is."""

    def __init__(self, spec: SampleSpec) -> None:
        """Take the sizes from a spec."""
        self._scale = spec.detection.scale

    def draw(self, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> list[None]:
        """Return a placeholder for each sample: nothing is random."""
        return [None] * len(samples)

    def fill(self, encoded: bytes, target: Any, drawn: None, slot: Slot, position: int) -> None:
        """Write the resized image and the content of KEY.json."""
        pixels = resized_pixels(EncodedImage(encoded).pixels(), self._scale)
        slot.sizes[position] = (*pixels.shape[:2], len(target), 0)
        slot.pixels[position, : pixels.size] = pixels.reshape(-1)
        slot.labels[position, : len(target)] = np.frombuffer(target, np.uint8)
