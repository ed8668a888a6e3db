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
    """Height and width of the images."""


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

    The first attempt of a run finds the number and keeps it in the run's folder; later ones read it there.

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
        TrainingError: on every rank, if not even the smallest micro-batch fits into the memory of one of them, or the
            number cannot be read or kept.
    """
    if config.micro_batch_size != AUTO:
        return config
    kept = broadcast_from_main(on_rank_0(world, lambda: read_micro_batch(run_dir)))
    if isinstance(kept, FoundMicroBatch):
        config = with_found(config, world.size, kept)
        recorder.log(f"micro-batch: {kept.describe()}, kept since the run's first start")
        return config
    candidates = micro_batch_candidates(config, world.size)
    memory = trial.open_memory(world.device)
    if memory is None:
        found = FoundMicroBatch(micro_batch_size=candidates[-1], world_size=world.size)
        how = ", the number that is taken without auto: memory is tried on GPUs alone"
    else:
        began = time.monotonic()
        mine = _try_memory(config, model, transform, num_classes, world, candidates, memory)
        found, image = _agree(config, candidates[0], mine, world)
        how = f" in {time.monotonic() - began:.1f} s; of {', '.join(map(str, candidates))} it is the largest that"
        how += f" fits on every rank, with images of {image}"
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
    task, image = find_task(config.task), "?"

    def fits(samples: int) -> bool:
        batch = task.largest_batch(config, num_classes, samples)

        def inputs() -> tuple[Tensor, ...]:
            nonlocal image
            values = transform(batch, world.device)
            height, width = values[0].shape[-2:]
            image = f"{height} x {width} px"
            return values

        return trial.fits(model, config, world, inputs, memory)

    largest = largest_that_fits(candidates, fits)
    return _Tried(largest=largest, place=f"rank {world.rank} on {node_name()}, {memory.describe()}", image=image)


def _agree(config: TrainConfig, smallest: int, mine: _Tried, world: World) -> tuple[FoundMicroBatch, str]:
    """Return the least of what the ranks have found, and the size of the images. Collective.

    Raises:
        TrainingError: on every rank, if on one of them not even the smallest micro-batch fits.
    """
    ranks = cast("list[_Tried]", gather_objects(mine))
    least = min(ranks, key=lambda rank: rank.largest or 0)
    if least.largest is None:
        raise TrainingError(
            f"--train.micro-batch-size auto: not even {smallest} images of {least.image} fit into the memory of "
            f"{least.place} with {config.model.name} in {config.precision}; {what_helps(config, [])}"
        )
    found = FoundMicroBatch(micro_batch_size=least.largest, world_size=world.size, decided_by=least.place)
    return found, least.image
