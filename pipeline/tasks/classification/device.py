"""From uint8 batches to the network's input, on the device: flip, mix, normalise, erase, and smooth the labels.

The order and the distributions are those of timm's prefetching loader, with which the published weights were trained:
its collate function mixes uint8 images and rounds them (`timm.data.mixup.FastCollateMixup` in batch mode), and its
prefetcher normalises the mixed images and erases each by a rectangle of its own (`RandomErasing` in pixel mode). The
box of CutMix is that of timm 0.6.12.

Flip and erasing depend on (seed, epoch, sample) alone; the mixing depends on (seed, step, group) alone, where a group
stands for upstream's batch of one GPU. So the draws do not depend on ranks, workers or interruptions. An image is mixed
with another of its group in the same micro-batch: the pairs depend on the size of the micro-batch.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config.schema import AugmentConfig, MixConfig
from pipeline.order import draws
from pipeline.tasks.batch import Batch, made_up_batch
from pipeline.tasks.classification.mixup import draw_mixing, mix, upload
from pipeline.tasks.normalise import Normalise

_ATTEMPTS = 10
"""Rectangles that are drawn until one fits into the image, as in timm's `RandomErasing`."""
_ERASED_AREA = (0.02, 1 / 3)
"""Range of the erased share of the image, as in timm's `RandomErasing`."""
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
"""Range of the logarithm of the erased rectangle's aspect ratio, as in timm's `RandomErasing`."""


def draw_flips(
    seed: int, epochs: NDArray[np.int64], samples: NDArray[np.int64], probability: float
) -> NDArray[np.bool_]:
    """Draw which samples are flipped: bool [N], for epochs and samples int64 [N]."""
    key = draws.key(seed, draws.Purpose.FLIP, epochs, samples)
    return draws.uniforms(key, 1)[:, 0] < probability


def draw_erasing(
    seed: int,
    epochs: NDArray[np.int64],
    samples: NDArray[np.int64],
    size: tuple[int, int],
    probability: float,
) -> NDArray[np.int64]:
    """Draw the rectangle that is erased in each sample, and where its noise begins in the noise bank.

    Args:
        seed: seed of the training.
        epochs: int64 [N], epoch in which each sample is read.
        samples: int64 [N], row of each sample in the index.
        size: (height, width) of the images.
        probability: probability that a sample is erased.

    Returns:
        int64 [N, 6]: top, left, height, width, noise row, noise column. Height and width are 0 for a sample that is not
        erased.
    """
    height, width = size
    keys = draws.key(seed, draws.Purpose.ERASING, epochs, samples)
    uniforms = draws.uniforms(keys, 3 + 4 * _ATTEMPTS)
    attempts = uniforms[:, 3:].reshape(-1, _ATTEMPTS, 4)
    area = (_ERASED_AREA[0] + (_ERASED_AREA[1] - _ERASED_AREA[0]) * attempts[..., 0]) * height * width
    aspect = np.exp(_LOG_ASPECT[0] + (_LOG_ASPECT[1] - _LOG_ASPECT[0]) * attempts[..., 1])
    heights, widths = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (heights < height) & (widths < width)
    first = fits.argmax(axis=1)
    row = np.arange(len(first))
    erased = (uniforms[:, 0] < probability) & fits[row, first]
    tall, wide = heights[row, first] * erased, widths[row, first] * erased
    tops = np.floor(attempts[row, first, 2] * (height - tall + 1))
    lefts = np.floor(attempts[row, first, 3] * (width - wide + 1))
    noise = np.floor(uniforms[:, 1:3] * [height, width])
    return np.stack([tops, lefts, tall, wide, noise[:, 0], noise[:, 1]], axis=1).astype(np.int64)


def largest_batch(side: int, num_classes: int, samples: int) -> Batch:
    """Return made-up images of `side` pixels, of all classes in turn."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (samples, side, side, 3), generator=generator, dtype=torch.uint8)
    return made_up_batch(pixels.permute(0, 3, 1, 2), torch.arange(samples) % num_classes)


class DeviceTransform:
    """The part of the training augmentation that runs on the device."""

    def __init__(self, augment: AugmentConfig, mix: MixConfig, num_classes: int, seed: int) -> None:
        """Prepare the transform of a training.

        Args:
            augment: flip, erasing, mean and standard deviation.
            mix: Mixup, CutMix and label smoothing.
            num_classes: number of classes, the length of a target.
            seed: seed of the training.
        """
        self._augment, self._mix, self._num_classes, self._seed = augment, mix, num_classes, seed
        self._normalise = Normalise(augment)
        self._noise: Tensor | None = None

    def __call__(self, batch: Batch, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Transform a batch.

        Args:
            batch: batch from the training loader.
            device: device of the result.

        Returns:
            Images float32 [N, 3, H, W] and targets float32 [N, num_classes]; each target sums to 1.
        """
        device = torch.device(device)
        height, width = batch.images.shape[2:]
        epochs, samples = batch.epochs.numpy(), batch.indices.numpy()
        images = batch.images.to(device, non_blocking=True).to(torch.float32, memory_format=torch.contiguous_format)
        labels = batch.labels.to(device, non_blocking=True)
        if self._augment.horizontal_flip > 0 and self._augment.mode == "fast":
            flips = np.flatnonzero(draw_flips(self._seed, epochs, samples, self._augment.horizontal_flip))
            chosen = upload(flips, device)
            images[chosen] = images[chosen].flip(3)
        targets = self._targets(labels)
        groups = batch.groups.numpy()
        for group in np.unique(groups).tolist():
            mixing = draw_mixing(self._seed, batch.step, group, height, width, self._mix)
            if mixing.weight < 1:
                mix(images, targets, np.flatnonzero(groups == group), mixing)
        images = self._normalise(images, device)
        if self._augment.random_erasing > 0:
            boxes = draw_erasing(self._seed, epochs, samples, (height, width), self._augment.random_erasing)
            self._erase(images, boxes)
        return images, targets

    def _erase(self, images: Tensor, boxes: NDArray[np.int64]) -> None:
        """Overwrite the rectangles of `images` with normal noise.

        The noise of a sample is a window of a noise bank [3, 2H, 2W], which is drawn once on the CPU from the seed. So
        the noise is the same on every device, and costs one gather instead of one generator for each sample.

        Args:
            images: float32 [N, 3, H, W], changed in place.
            boxes: int64 [N, 6], result of `draw_erasing`.
        """
        height, width = images.shape[2:]
        if self._noise is None or self._noise.shape[1:] != (2 * height, 2 * width):
            generator = torch.Generator().manual_seed(self._seed)
            self._noise = torch.randn(3, 2 * height, 2 * width, generator=generator).to(images.device)
        erased = np.flatnonzero(boxes[:, 2])
        if not len(erased):
            return
        chosen, box = upload(erased, images.device), upload(boxes[erased], images.device)
        top, left, tall, wide, noise_row, noise_column = box.view(-1, 6, 1, 1).unbind(1)
        rows = torch.arange(height, device=images.device).view(1, -1, 1)
        columns = torch.arange(width, device=images.device).view(1, 1, -1)
        inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
        noise = self._noise[:, rows + noise_row, columns + noise_column].transpose(0, 1)
        images[chosen] = torch.where(inside.unsqueeze(1), noise, images[chosen])

    def _targets(self, labels: Tensor) -> Tensor:
        """Smoothed one-hot targets of `labels` (int64 [N]): float32 [N, classes]."""
        rest = self._mix.label_smoothing / self._num_classes
        targets = torch.full((len(labels), self._num_classes), rest, device=labels.device)
        mass = torch.full((len(labels), 1), 1 - self._mix.label_smoothing, device=labels.device)
        return targets.scatter_add_(1, labels.unsqueeze(1), mass)
