"""From a batch of images of different sizes to the inputs of a detection network, on the device."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config.schema import AugmentConfig, TrainConfig
from pipeline.order import draws
from pipeline.tasks.batch import Batch, made_up_batch
from pipeline.tasks.detection.objects import pack_objects, unpack_objects
from pipeline.tasks.normalise import Normalise

DIVISOR = 32
"""Sides of a padded batch are multiples of this, because the network halves them five times."""
MOST_REGIONS, FEWEST, ALL_OBJECTS = 128, 20, 2048
"""Objects in each image of `largest_batch`: as many as a Mask R-CNN learns regions of an image with, once its proposals
are good, or as many as make this number in all images, and not fewer than these: their masks are whole images in the
memory of the host. COCO's images have 7 on average."""


class PaddedImages:
    """Uploads images of different sizes, normalises each, and pads them with zeros to the largest sides."""

    def __init__(self, augment: AugmentConfig) -> None:
        """Take mean and deviation from `augment`."""
        self._normalise = Normalise(augment)

    def __call__(self, batch: Batch, device: torch.device) -> Tensor:
        """Return float32 [N, 3, H, W], each image in the top left corner."""
        assert batch.sizes is not None
        sizes = batch.sizes[:, :2].tolist()
        height, width = (-(-max(side) // DIVISOR) * DIVISOR for side in zip(*sizes, strict=True))
        images = torch.zeros((len(sizes), 3, height, width), device=device)
        for number, (rows, columns) in enumerate(sizes):
            pixels = batch.images[number, : rows * columns * 3].view(1, rows, columns, 3).permute(0, 3, 1, 2)
            images[number, :, :rows, :columns] = self._normalise(pixels, device)[0]
        return images


class TrainBatch:
    """Pads images and unpacks their objects, with a draw for the samplers of each image."""

    def __init__(self, config: TrainConfig, has_masks: bool) -> None:
        """Take mean, deviation and seed from `config`."""
        self._pad, self._seed, self._has_masks = PaddedImages(config.augment), config.seed, has_masks

    def __call__(self, batch: Batch, device: torch.device | str) -> tuple[Tensor, ...]:
        """Return what `split_truths` takes apart.

        Returns:
            Images float32 [N, 3, H, W]; sizes int64 [N, 2]; objects of each image int64 [N]; draws int64 [N], a
            function of (seed, step, sample); boxes float32 [G, 4] and labels int64 [G] of all images; and for a
            network that learns masks uint8 [G, H, W].
        """
        assert batch.sizes is not None
        device = torch.device(device)
        images = self._pad(batch, device)
        objects = [
            unpack_objects(labels[:used].tobytes(), (rows, columns))
            for labels, (rows, columns, used, _) in zip(batch.labels.numpy(), batch.sizes.tolist(), strict=True)
        ]
        counts = torch.tensor([len(found.labels) for found in objects])
        keys = draws.key(self._seed, draws.Purpose.SAMPLER, batch.step, batch.indices.numpy())
        drawn = torch.from_numpy(keys.view(np.int64).copy())
        boxes = torch.from_numpy(np.concatenate([found.boxes for found in objects])).to(device)
        labels = torch.from_numpy(np.concatenate([found.labels for found in objects])).to(device)
        inputs = (images, batch.sizes[:, :2].clone(), counts, drawn, boxes, labels)
        if not self._has_masks:
            return inputs
        masks = torch.zeros((len(labels), *images.shape[-2:]), dtype=torch.uint8)
        first = 0
        for found in objects:
            assert found.masks is not None
            count, rows, columns = found.masks.shape
            masks[first : first + count, :rows, :columns] = torch.from_numpy(found.masks)
            first += count
        return (*inputs, masks.to(device))


def split_truths(
    sizes: Tensor, counts: Tensor, drawn: Tensor, per_object: Sequence[Tensor]
) -> tuple[list[tuple[int, int]], list[int], list[tuple[Tensor, ...]]]:
    """Take the inputs of `TrainBatch` apart: (height, width) and draw of each image, and each tensor by image."""
    numbers = counts.tolist()
    images = [(rows, columns) for rows, columns in sizes.tolist()]
    unsigned = [draw & (2**64 - 1) for draw in drawn.tolist()]
    return images, unsigned, [tensor.split(numbers) for tensor in per_object]


def largest_batch(scale: tuple[int, int], num_classes: int, samples: int, *, has_masks: bool) -> Batch:
    """Return made-up images that are upright and lying in turn, so that all are padded to squares, with objects.

    Args:
        scale: longest and shortest side of an image.
        num_classes: number of classes; objects are of all of them in turn.
        samples: number of images.
        has_masks: whether objects have masks, which fill their boxes.
    """
    long, short = max(scale), min(scale)
    draw = np.random.default_rng(0)
    pixels = torch.from_numpy(draw.integers(0, 256, (samples, 3 * long * short), np.uint8))
    count = min(MOST_REGIONS, max(FEWEST, ALL_OBJECTS // samples))
    kinds = []
    for size in ((long, short), (short, long)):
        centres, sides = draw.uniform(0.2, 0.8, (count, 2)), draw.uniform(0.05, 0.4, (count, 2))
        corners = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
        boxes = np.round(corners * [size[1], size[0], size[1], size[0]]).astype(np.float32)
        masks = (_filled(box, size) for box in boxes.astype(int)) if has_masks else None
        objects = np.frombuffer(pack_objects(boxes, np.arange(count) % num_classes, masks), np.uint8)
        kinds.append(([*size, len(objects), 0], objects))
    sizes, packed = zip(*(kinds[number % 2] for number in range(samples)), strict=True)
    labels = np.zeros((samples, max(map(len, packed))), np.uint8)
    for row, content in zip(labels, packed, strict=True):
        row[: len(content)] = content
    return made_up_batch(pixels, torch.from_numpy(labels), torch.tensor(sizes))


def _filled(box: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the mask uint8 [H, W] of an object that fills its box."""
    mask = np.zeros(size, np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 1
    return mask
