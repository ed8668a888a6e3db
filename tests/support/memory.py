"""A device whose memory has a limit, on the CPU: what autograd keeps for the backward is counted, byte by byte.

Only the allocator's answer is made up: the steps whose tensors are counted are real ones.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from pipeline.config.schema import TrainConfig
from pipeline.engine import trial
from pipeline.engine.distributed import World
from pipeline.engine.engine import Engine
from pipeline.tasks import find_task


class LimitedMemory:
    """Memory (`pipeline.engine.trial.Memory`) that takes up to `limit` bytes of tensors kept for the backward."""

    def __init__(self, limit: float) -> None:
        self.limit, self.peak, self.used = limit, 0, 0

    @contextlib.contextmanager
    def bounded(self) -> Iterator[None]:
        def keep(tensor: torch.Tensor) -> torch.Tensor:
            self.used += tensor.numel() * tensor.element_size()
            self.peak = max(self.peak, self.used)
            if self.used > self.limit:
                raise torch.OutOfMemoryError(f"{self.used} bytes of {self.limit}")
            return tensor

        def give_back(tensor: torch.Tensor) -> torch.Tensor:
            self.used -= tensor.numel() * tensor.element_size()
            return tensor

        self.used = 0
        with torch.autograd.graph.saved_tensors_hooks(keep, give_back):
            yield

    def refused(self) -> int:
        return 0

    def release(self) -> None:
        pass

    def describe(self) -> str:
        return f"a device of {self.limit} bytes"

    def shortage(self) -> str:
        return "7.5 GiB are held by other processes" if self.limit == 0 else ""


def limit_memory(limit: float | None) -> None:
    """Give the ranks of this process a device with such a memory; None: one whose memory is not tried."""
    trial.open_memory = lambda device: None if limit is None else LimitedMemory(limit)


def needed_memory(config: TrainConfig, model: torch.nn.Module, num_classes: int, samples: int) -> int:
    """Bytes that a step of `config` with micro-batches of `samples` takes of such a memory."""
    memory = LimitedMemory(float("inf"))
    world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
    task, config = find_task(config.task), dataclasses.replace(config, micro_batch_size=samples)
    batch, transform = task.largest_batch(config, num_classes, samples), task.device_transform(config, num_classes)
    assert trial.fits(model, config, world, lambda: transform(batch, world.device), memory)
    return memory.peak


@dataclasses.dataclass(frozen=True)
class Limits:
    """Gives rank `k` a memory of `limits[k]` bytes."""

    limits: tuple[float, ...]

    def __call__(self, rank: int) -> None:
        limit_memory(self.limits[rank])


@dataclasses.dataclass(frozen=True)
class LimitSteps:
    """Gives the steps of the training a memory of `limit` bytes, on each rank."""

    limit: float

    def __call__(self, rank: int) -> None:
        step = Engine.step

        def limited(*args: Any, **options: Any) -> tuple[float, float]:
            with LimitedMemory(self.limit).bounded():
                return step(*args, **options)

        Engine.step = limited
