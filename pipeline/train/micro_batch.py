"""`--train.micro-batch-size auto`: the micro-batch of a run, found at its first start and kept.

Each rank tries by itself which micro-batches fit into the memory of its GPU, so that one that runs out of memory leaves
no other waiting. The ranks then agree on the smallest of what they have found, and rank 0 keeps it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from jobs import node_name
from pipeline.common.errors import TrainingError
from pipeline.config.checks import micro_batch_candidates, with_micro_batch
from pipeline.config.schema import AUTO, TrainConfig
from pipeline.engine import trial
from pipeline.engine.distributed import World, broadcast_from_main, gather_objects
from pipeline.run.files import durable_step
from pipeline.run.micro_batch import FoundMicroBatch, read_micro_batch, with_found, write_micro_batch
from pipeline.run.recorder import Recorder
from pipeline.tasks import find_task
from pipeline.tasks.batch import Batch
from pipeline.train.out_of_memory import what_helps
from pipeline.train.rank_0 import on_rank_0

Transform = Callable[[Batch, torch.device | str], tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class _Tried:
    """What a rank has found in its memory."""

    largest: int | None
    """Largest micro-batch that fits; None: not even the smallest does."""
    place: str
    """The rank, its host and its device, with how much of the memory may be taken."""
    image: str
    """Height and width of the images, in words; empty if none of them could be made."""
    shortage: str
    """What other processes hold of the memory, where it is much; else empty."""


def settle_micro_batch(
    config: TrainConfig,
    model: nn.Module,
    transform: Transform,
    num_classes: int,
    run_dir: Path,
    world: World,
    recorder: Recorder,
) -> TrainConfig:
    """Return the configuration with a number for its micro-batch where it has `auto`. Collective.

    The first attempt of a run finds the number and keeps it in the run's folder; later ones read it there. One that
    CPUs have kept is found anew on GPUs, as long as the run has no checkpoint.

    Args:
        config: of the training, checked for the size of `world`.
        model: the network, on the CPU; it stays as it is.
        transform: from a batch to what the losses need, with a teacher if there is one.
        num_classes: number of classes.
        run_dir: of the run.
        world: this process among the ranks.
        recorder: logs what was found.

    Raises:
        ConfigError: the number that was kept does not fit this number of ranks.
        TrainingError: on every rank, if not even the smallest micro-batch fits into the memory of one of them, some
            have a GPU and others none, or the number cannot be read or kept.
    """
    if config.micro_batch_size != AUTO:
        return config
    memory = trial.open_memory(world.device)
    kept = broadcast_from_main(on_rank_0(world, lambda: _read_kept(run_dir, has_gpu=memory is not None)))
    if isinstance(kept, FoundMicroBatch):
        config = with_found(config, world.size, kept)
        recorder.log(f"micro-batch: {kept.describe()}, kept since the run's first start")
        return config
    candidates = micro_batch_candidates(config, world.size)
    tried = ", ".join(map(str, candidates))
    if memory is not None:
        recorder.log(f"micro-batch: trying which of {tried} fit into the memory of the GPUs")
    began = time.monotonic()
    mine = None if memory is None else _try_memory(config, model, transform, num_classes, world, candidates, memory)
    ranks = _gather(mine)
    if not ranks:
        found = FoundMicroBatch(micro_batch_size=candidates[-1], world_size=world.size)
        how = ", the number that is taken without auto: memory is tried on GPUs alone"
    else:
        found, image = _agree(config, candidates[0], ranks)
        how = f" in {time.monotonic() - began:.1f} s; of {tried} it is the largest that fits on every rank, with images"
        how += image
        for rank in ranks:
            if rank.shortage:
                recorder.warn(f"{rank.place}: {rank.shortage}, and the micro-batch that was found is kept for the run")
    on_rank_0(world, lambda: write_micro_batch(run_dir, found))
    recorder.log(f"micro-batch: {found.describe()}{how}; kept for this run")
    return with_micro_batch(config, world.size, found.micro_batch_size)


def largest_that_fits(candidates: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """Return the largest candidate that fits; None: none does.

    Args:
        candidates: the smallest first; with one that fits, all smaller ones do.
        fits: tries one. The largest is tried first, then always the middle of what is left.
    """
    low, high = 0, len(candidates)
    middle = high - 1
    while low < high:
        if fits(candidates[middle]):
            low = middle + 1
        else:
            high = middle
        middle = (low + high) // 2
    return candidates[low - 1] if low else None


def _try_memory(
    config: TrainConfig,
    model: nn.Module,
    transform: Transform,
    num_classes: int,
    world: World,
    candidates: Sequence[int],
    memory: trial.Memory,
) -> _Tried:
    """Find the largest micro-batch that fits into the memory of this rank."""
    task, image = find_task(config.task), ""

    def fits(samples: int) -> bool:
        batch = task.largest_batch(config, num_classes, samples)

        def inputs() -> tuple[Tensor, ...]:
            nonlocal image
            values = transform(batch, world.device)
            height, width = values[0].shape[-2:]
            image = f" of {height} x {width} px"
            return values

        return trial.fits(model, config, world, inputs, memory)

    largest = largest_that_fits(candidates, fits)
    place = f"rank {world.rank} on {node_name()}, {memory.describe()}"
    return _Tried(largest=largest, place=place, image=image, shortage=memory.shortage())


def _read_kept(run_dir: Path, *, has_gpu: bool) -> FoundMicroBatch | None:
    """Return the micro-batch that a run keeps; None: there is none, or one from CPUs that no checkpoint depends on.

    Raises:
        RunDirectoryError: the file is damaged.
    """
    kept = read_micro_batch(run_dir)
    is_from_cpus = kept is not None and not kept.decided_by
    return None if is_from_cpus and has_gpu and durable_step(run_dir) < 0 else kept


def _gather(mine: _Tried | None) -> list[_Tried]:
    """Return what the ranks have found, in their order; nothing where all train on CPUs. Collective.

    Raises:
        TrainingError: on every rank, if some train on GPUs and others on CPUs.
    """
    ranks = cast("list[_Tried | None]", gather_objects(mine))
    tried = [rank for rank in ranks if rank is not None]
    if tried and len(tried) < len(ranks):
        raise TrainingError(
            f"--train.micro-batch-size auto: rank {ranks.index(None)} trains on a CPU, and {tried[0].place} does not: "
            "give each rank a GPU, or a number in place of auto"
        )
    return tried


def _agree(config: TrainConfig, smallest: int, ranks: Sequence[_Tried]) -> tuple[FoundMicroBatch, str]:
    """Return the least of what the ranks have found, and the size of the images in words.

    Raises:
        TrainingError: on one of them not even the smallest micro-batch fits.
    """
    least = min(ranks, key=lambda rank: rank.largest or 0)
    if least.largest is None:
        raise TrainingError(
            f"--train.micro-batch-size auto: not even {smallest} images{least.image} fit into the memory of "
            f"{least.place} with {config.model.name} in {config.precision}{least.shortage and f' ({least.shortage})'}; "
            f"{what_helps(config, [])}"
        )
    found = FoundMicroBatch(micro_batch_size=least.largest, world_size=len(ranks), decided_by=least.place)
    return found, least.image
