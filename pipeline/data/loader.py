"""Batches of a training and of an evaluation, opened at a step.

What is in a batch is decided by `pipeline.order` from the step alone; here it is read, by this process or by workers
that write into shared memory, which is page-locked where the device is a GPU.
"""

import logging
from collections.abc import Iterable, Iterator
from itertools import takewhile
from typing import TYPE_CHECKING, Self

import numpy as np

from pipeline.augment.jpeg import region as jpeg_region
from pipeline.config.schema import AugmentConfig, DataConfig, TrainConfig
from pipeline.data.split import Split, build_prefetcher, open_split
from pipeline.order.samples import SampleOrder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pipeline.data.batch import Batch, Request
    from pipeline.data.prefetch import Prefetcher
    from pipeline.data.reader import ReaderSpec
    from pipeline.data.source import BatchSource


EVALUATION_BATCH = 128
logger = logging.getLogger(__name__)


class StepBatches:
    """The micro-batches of one step, read when they are asked for; to be iterated once, to the end."""

    def __init__(self, source: "BatchSource", step: int, count: int) -> None:
        self.step, self._source, self._left = step, source, count

    def __len__(self) -> int:
        """Micro-batches that were not asked for yet."""
        return self._left

    def __iter__(self) -> Iterator["Batch"]:
        """Yield the micro-batches."""
        while self._left:
            self._left -= 1
            yield next(self._source)


class _Loader:
    """What both loaders have in common."""

    def __init__(self, split: "Split", source: "BatchSource", prefetcher: "Prefetcher | None") -> None:
        self._index, self._source, self._prefetcher = split.index, source, prefetcher

    def keys(self, indices: "Iterable[int] | Tensor") -> list[str]:
        """Keys of samples, by their rows in the index."""
        return self._index.keys(int(row) for row in indices)

    def close(self) -> None:
        """End the workers."""
        self._source.close()
        if self._prefetcher is not None:
            self._prefetcher.close()

    def __enter__(self) -> Self:
        """Close at the end of the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


class TrainLoader(_Loader):
    """Iterates over steps; each is an iterable of its micro-batches.

    Attributes:
        data_wait_s: seconds that the last step, or the present one so far, waited for its batches.
    """

    def __init__(
        self,
        split: "Split",
        source: "BatchSource",
        prefetcher: "Prefetcher | None",
        steps: range,
        micro_batches: int,
    ) -> None:
        super().__init__(split, source, prefetcher)
        self._steps, self._micro_batches = iter(steps), micro_batches

    @property
    def data_wait_s(self) -> float:
        """Seconds that the step which was asked for last has waited for its batches."""
        return self._source.data_wait_s

    def __iter__(self) -> Iterator[StepBatches]:
        """Yield the steps that were not asked for yet.

        Raises:
            RuntimeError: the step before was not read to its end.
            DamagedSampleError: a sample is not what the index says.
            LoaderError: a worker failed or was killed.
        """
        for step in self._steps:
            self._source.data_wait_s = 0.0
            batches = StepBatches(self._source, step, self._micro_batches)
            yield batches
            if len(batches):
                raise RuntimeError(f"step {step} was left with {len(batches)} micro-batches not read")


class EvaluationLoader(_Loader):
    """Iterates over the batches of a rank's share of a split, each sample once over all ranks."""

    def __iter__(self) -> Iterator["Batch"]:
        """Yield the batches that were not asked for yet; their `step` counts them."""
        while True:
            try:
                yield next(self._source)
            except StopIteration:
                return


def build_train_loader(
    config: TrainConfig,
    *,
    world_size: int,
    rank: int,
    start_step: int,
    total_steps: int,
    device: "torch.device | str",
) -> TrainLoader:
    """Open the training split at a step.

    Args:
        config: of the training, checked for `world_size`.
        world_size: number of ranks.
        rank: of this process.
        start_step: first step that is read.
        total_steps: step after the last.
        device: of the training; batches are page-locked for a GPU.

    Raises:
        ManifestError: there is no such split, or its index does not fit.
        CacheFolderError: the node's folder for indices and shards cannot be used.
    """
    if rank == 0 and not jpeg_region.is_built():
        logger.warning("images load a quarter slower: no C compiler was there when this package was installed")
    data, global_batch_size = config.data, config.global_batch_size
    split = open_split(data.shards, data.train_split, data)
    shard_samples = tuple(shard.samples for shard in split.manifest.shards)
    order = SampleOrder(shard_samples, seed=config.seed, lanes=data.lanes, block_shards=data.block_shards)
    micro, count = config.micro_batch(world_size), config.gradient_accumulation_steps(world_size)
    needs = order.shards_by_need(start_step * global_batch_size, rank, world_size)
    needs = takewhile(lambda need: need[0] < total_steps * global_batch_size, needs)
    prefetcher = build_prefetcher(data, split, needs) if start_step < total_steps else None

    from pipeline.data.batch import Request
    from pipeline.data.reader import ReaderSpec

    def requests() -> Iterator["Request"]:
        steps = range(start_step, total_steps)
        for step, rows, epochs in order.batches(steps, global_batch_size, rank=rank, world_size=world_size):
            if prefetcher is not None:
                prefetcher.advance((step + 1) * global_batch_size)
            for micro_step in range(count):
                # The same images share a BatchNorm on any number of ranks, as long as the micro-batch keeps its size.
                part = slice(micro_step, None, count)
                yield Request(rows[part].copy(), epochs[part].copy(), step, micro_step)

    spec = ReaderSpec(
        index_folder=split.index.folder,
        shards=split.shards,
        augment=config.augment,
        image_size=config.model.image_size,
        seed=config.seed,
        training=True,
        on_damage=data.on_damage,
    )
    workers = data.workers if start_step < total_steps else 0
    source = _source(data, spec, requests(), micro, workers, device)
    return TrainLoader(split, source, prefetcher, range(start_step, total_steps), count)


def build_evaluation_loader(
    data: DataConfig,
    augment: AugmentConfig,
    image_size: int,
    *,
    world_size: int,
    rank: int,
    device: "torch.device | str",
) -> EvaluationLoader:
    """Open the validation split: every sample exactly once over all ranks; shares may differ by one sample.

    Args:
        data: where the validation split is, and how it is read.
        augment: how images are prepared; nothing of it is random in an evaluation.
        image_size: side of the square images, in pixels.
        world_size: number of ranks.
        rank: of this process.
        device: of the evaluation; batches are page-locked for a GPU.

    Raises:
        ManifestError: there is no such split, or its index does not fit.
        CacheFolderError: the node's folder for indices and shards cannot be used.
    """
    split = open_split(data.validation_shards or data.shards, data.validation_split, data)
    num_samples = split.manifest.num_samples
    share = np.arange(rank * num_samples // world_size, (rank + 1) * num_samples // world_size)
    first_rows = split.index.first_rows
    mine = ((int(first), shard) for shard, first in enumerate(first_rows[:-1]) if len(share) and first <= share[-1])
    needs = (need for need in mine if first_rows[need[1] + 1] > share[0])
    prefetcher = build_prefetcher(data, split, needs)

    from pipeline.data.batch import Request
    from pipeline.data.reader import ReaderSpec

    def requests() -> Iterator["Request"]:
        for step, first in enumerate(range(0, len(share), EVALUATION_BATCH)):
            rows = share[first : first + EVALUATION_BATCH].copy()
            if prefetcher is not None:
                prefetcher.advance(int(rows[-1]) + 1)
            yield Request(rows, np.zeros_like(rows), step, 0)

    spec = ReaderSpec(
        index_folder=split.index.folder,
        shards=split.shards,
        augment=augment,
        image_size=image_size,
        seed=0,
        training=False,
        on_damage="stop",  # a replaced validation image would give another accuracy
    )
    source = _source(data, spec, requests(), EVALUATION_BATCH, data.workers, device)
    return EvaluationLoader(split, source, prefetcher)


def _source(
    data: DataConfig,
    spec: "ReaderSpec",
    requests: "Iterator[Request]",
    samples: int,
    workers: int,
    device: "torch.device | str",
) -> "BatchSource":
    import torch

    from pipeline.data.source import BatchSource

    return BatchSource(
        spec,
        requests,
        samples=samples,
        workers=workers,
        ahead=data.prefetch_batches,
        max_replacements=data.max_replacements,
        device=torch.device(device),
    )
