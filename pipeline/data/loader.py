"""The batches of a training, from any step on, and of an evaluation.

`pipeline.order` decides which samples a batch of the training holds, from the step alone. This process reads them, or
worker processes read them ahead into shared memory, which is page-locked if the device is a GPU.
"""

import logging
from collections.abc import Iterable, Iterator
from itertools import pairwise, takewhile
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pipeline.augment.jpeg import region as jpeg_region
from pipeline.config.schema import AugmentConfig, DataConfig, DetectionConfig, SegmentationConfig, TrainConfig
from pipeline.data.prefetch import Prefetcher
from pipeline.data.reader import ReaderSpec
from pipeline.data.request import Request
from pipeline.data.source import BatchSource
from pipeline.data.split import Split, build_prefetcher, open_split
from pipeline.order.samples import SampleOrder, mixing_groups
from pipeline.tasks import DEFAULT, find_task
from pipeline.tasks.batch import Batch

logger = logging.getLogger(__name__)


class StepBatches:
    """The micro-batches of one step, read when they are asked for; iterate over them once, to the end.

    Attributes:
        step: the optimizer step.
        read: the micro-batches that were read so far.
    """

    def __init__(self, source: BatchSource, step: int, count: int) -> None:
        self.step, self._source, self._left = step, source, count
        self.read: list[Batch] = []

    def __len__(self) -> int:
        """Return the number of micro-batches that are still to be read."""
        return self._left

    def __iter__(self) -> Iterator[Batch]:
        """Yield the micro-batches that are still to be read."""
        while self._left:
            self._left -= 1
            self.read.append(next(self._source))
            yield self.read[-1]


class _Loader:
    """The common part of both loaders: an open split, the source of its batches, and their end."""

    def __init__(self, split: Split, source: BatchSource, prefetcher: Prefetcher | None) -> None:
        self._index, self._source, self._prefetcher = split.index, source, prefetcher

    def keys(self, indices: Iterable[int] | Tensor) -> list[str]:
        """Return the keys of samples, given their rows in the index."""
        return self._index.keys(int(row) for row in indices)

    def close(self) -> None:
        """End the loader workers and the prefetch process."""
        self._source.close()
        if self._prefetcher is not None:
            self._prefetcher.close()

    def __enter__(self) -> Self:
        """Return the loader, which is closed at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the loader."""
        self.close()


class TrainLoader(_Loader):
    """An iterable of steps, each of which is an iterable of its micro-batches."""

    def __init__(
        self, split: Split, source: BatchSource, prefetcher: Prefetcher | None, steps: range, micro_batches: int
    ) -> None:
        super().__init__(split, source, prefetcher)
        self._steps, self._micro_batches = iter(steps), micro_batches

    @property
    def data_wait_s(self) -> float:
        """Seconds that the latest step has waited for its batches so far."""
        return self._source.data_wait_s

    def __iter__(self) -> Iterator[StepBatches]:
        """Yield the steps that are still to be read.

        Raises:
            RuntimeError: the caller did not read all micro-batches of the previous step.
            DamagedSampleError: a sample is damaged and may not be replaced, or too many were replaced.
            LoaderError: reading failed, or a worker was killed.
        """
        for step in self._steps:
            self._source.data_wait_s = 0.0
            batches = StepBatches(self._source, step, self._micro_batches)
            yield batches
            if len(batches):
                raise RuntimeError(f"step {step} was left with {len(batches)} micro-batches not read")


class EvaluationLoader(_Loader):
    """An iterable of the batches of a rank's share of a split; all ranks together read each sample once."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches that are still to be read; their `step` numbers them from 0.

        Raises:
            DamagedSampleError: a sample is damaged.
            LoaderError: reading failed, or a worker was killed.
        """
        yield from self._source


def build_train_loader(
    config: TrainConfig,
    *,
    world_size: int,
    rank: int,
    start_step: int,
    total_steps: int,
    device: torch.device | str,
) -> TrainLoader:
    """Open the training split at a step, and start to read ahead.

    Args:
        config: configuration of the training, checked for `world_size`.
        world_size: number of ranks.
        rank: rank of this process.
        start_step: first step to read.
        total_steps: number of steps of the training; the last step read is `total_steps - 1`.
        device: device of the training; batches for a GPU lie in page-locked memory.

    Raises:
        ManifestError: the split does not exist, or its index does not match its manifest.
        CacheFolderError: the node's folder for indices and shards cannot be used.
    """
    if rank == 0 and not jpeg_region.is_built():
        logger.warning(
            "rank 0: the JPEG decoder in C was not compiled, so images load a quarter slower: install a C compiler, "
            "then install this package again"
        )
    data, global_batch_size = config.data, config.global_batch_size
    steps = range(start_step, total_steps)
    split = open_split(data.shards, data.train_split, data)
    shard_samples = tuple(shard.samples for shard in split.manifest.shards)
    order = SampleOrder(shard_samples, seed=config.seed, lanes=data.lanes, block_shards=data.block_shards)
    is_sorted = find_task(config.task).sorts_by_aspect
    # A rank of a sorted step may read any sample of it.
    place = (0, 1) if is_sorted else (rank, world_size)
    needs = order.shards_by_need(start_step * global_batch_size, *place)
    needs = takewhile(lambda need: need[0] < total_steps * global_batch_size, needs)
    prefetcher = build_prefetcher(data, split, needs) if steps else None
    micro_batches = config.gradient_accumulation_steps(world_size)
    groups = mixing_groups(global_batch_size, config.mix.group_size, rank, world_size)

    def requests() -> Iterator[Request]:
        if is_sorted:
            yield from sorted_requests()
            return
        for step, rows, epochs in order.batches(steps, global_batch_size, rank=rank, world_size=world_size):
            if prefetcher is not None:
                prefetcher.advance((step + 1) * global_batch_size)
            for micro_step in range(micro_batches):
                # Micro-batches of one size hold the same samples on any number of ranks, so a BatchNorm sees the same.
                part = slice(micro_step, None, micro_batches)
                yield Request(rows[part].copy(), epochs[part].copy(), groups[part].copy(), step, micro_step)

    def sorted_requests() -> Iterator[Request]:
        # Sorting the whole batch of a step keeps it a function of the step alone, and mixes orientations at most once.
        micro = config.micro_batch(world_size)
        for step, rows, epochs in order.batches(steps, global_batch_size):
            if prefetcher is not None:
                prefetcher.advance((step + 1) * global_batch_size)
            by_aspect = np.argsort(split.index.aspects(rows), kind="stable")
            for micro_step in range(micro_batches):
                first = (micro_step * world_size + rank) * micro
                part = by_aspect[first : first + micro]
                yield Request(rows[part], epochs[part], np.zeros(micro, np.int64), step, micro_step)

    spec = ReaderSpec(
        index_folder=split.index.folder,
        shards=split.shards,
        augment=config.augment,
        image_size=config.model.image_size,
        seed=config.seed,
        training=True,
        on_damage=data.on_damage,
        task=config.task,
        segmentation=config.segmentation,
        detection=config.detection,
        model=config.model.name,
        class_of=split.manifest.class_of,
    )
    workers = data.workers if steps else 0
    source = _open_source(data, spec, requests(), config.micro_batch(world_size), workers, rank, device)
    return TrainLoader(split, source, prefetcher, steps, micro_batches)


def build_evaluation_loader(
    data: DataConfig,
    augment: AugmentConfig,
    image_size: int,
    *,
    world_size: int,
    rank: int,
    device: torch.device | str,
    task: str = DEFAULT,
    segmentation: SegmentationConfig | None = None,
    detection: DetectionConfig | None = None,
    model: str = "",
) -> EvaluationLoader:
    """Open the validation split, and start to read ahead.

    All ranks together read each sample exactly once; the shares of two ranks differ by at most one sample.

    Args:
        data: where the validation split is, and how it is read.
        augment: crop of the images; an evaluation draws no random numbers.
        image_size: height and width of the images in pixels.
        world_size: number of ranks.
        rank: rank of this process.
        device: device of the evaluation; batches for a GPU lie in page-locked memory.
        task: name of the task.
        segmentation: sizes of a segmentation.
        detection: sizes of a detection.
        model: name of the network.

    Raises:
        ManifestError: the split does not exist, or its index does not match its manifest.
        CacheFolderError: the node's folder for indices and shards cannot be used.
    """
    split = open_split(data.validation_location, data.validation_split, data)
    num_samples, first_rows = split.manifest.num_samples, split.index.first_rows
    share = np.arange(rank * num_samples // world_size, (rank + 1) * num_samples // world_size)
    needs = (
        (int(first), shard)
        for shard, (first, end) in enumerate(pairwise(first_rows))
        if len(share) and first <= share[-1] and end > share[0]
    )
    prefetcher = build_prefetcher(data, split, needs)
    batch = find_task(task).evaluation_batch

    def requests() -> Iterator[Request]:
        for step, first in enumerate(range(0, len(share), batch)):
            rows = share[first : first + batch].copy()
            if prefetcher is not None:
                prefetcher.advance(int(rows[-1]) + 1)
            yield Request(rows, np.zeros_like(rows), np.zeros_like(rows), step, 0)

    spec = ReaderSpec(
        index_folder=split.index.folder,
        shards=split.shards,
        augment=augment,
        image_size=image_size,
        seed=0,
        training=False,
        on_damage="stop",  # a replaced validation image would give another accuracy
        task=task,
        segmentation=segmentation or SegmentationConfig(),
        detection=detection or DetectionConfig(),
        model=model,
        class_of=split.manifest.class_of,
    )
    source = _open_source(data, spec, requests(), batch, data.workers, rank, device)
    return EvaluationLoader(split, source, prefetcher)


def _open_source(
    data: DataConfig,
    spec: ReaderSpec,
    requests: Iterator[Request],
    samples: int,
    workers: int,
    rank: int,
    device: torch.device | str,
) -> BatchSource:
    """Open the source of a loader's batches with the settings in `data`."""
    return BatchSource(
        spec,
        requests,
        samples=samples,
        workers=workers,
        ahead=data.prefetch_batches,
        max_replacements=data.max_replacements,
        rank=rank,
        device=torch.device(device),
    )
