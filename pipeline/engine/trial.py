"""One rank alone takes steps as the training will, to see whether their memory fits: no collective, no trace.

The network, its optimizer and all random draws are copies that are dropped afterwards. The copy is not partitioned,
which would take less. In place of a compiled network, which keeps less, its operators run in plain PyTorch, as they are
when they are compiled. The copy is not recorded either; what the training holds beside is held in its place.
"""

import contextlib
import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor, nn

from pipeline.config.schema import TrainConfig
from pipeline.engine.deepspeed_config import BUCKET_ELEMENTS
from pipeline.engine.deepspeed_imports import defer_compiler
from pipeline.engine.distributed import World
from pipeline.engine.engine import DTYPES, flatten_parameters, prepare_network, training_losses
from pipeline.engine.loss_model import LossModel
from pipeline.engine.optimizer import build_optimizer
from transxnet.backend import use_triton
from transxnet.layers import ScaledResidual

MARGIN = 0.1
"""Share of a GPU's memory that the trial leaves free: for fragmentation, NCCL, and what libraries allocate later."""
SHORTAGE = 0.15
"""Share of a GPU's memory that other processes hold, above which it is said."""
_COPIES = 7
"""Copies of the weights that are held beside them, their gradients and moments: the moving average; ZeRO's own
partition and its gradients; with CUDA graphs two copies of the gradients; and the evaluation's network, with the copy
of the average that it gets."""
_BUCKETS = 2
"""Buckets in which gradients are reduced, one while the other one is filled."""
_GIB = 2**30


class Memory(Protocol):
    """The memory of a rank's device."""

    def bounded(self) -> AbstractContextManager[None]:
        """Have what is allocated in the block raise `torch.OutOfMemoryError` beyond what may be taken."""
        ...

    def refused(self) -> int:
        """Return how many allocations were refused so far."""
        ...

    def release(self) -> None:
        """Give back what is not used any more."""
        ...

    def describe(self) -> str:
        """Describe the device, and how much of its memory may be taken."""
        ...

    def shortage(self) -> str:
        """Say what other processes hold of it, where it is much; else nothing."""
        ...


class GpuMemory:
    """The memory of a GPU: what is free now, without `MARGIN`."""

    def __init__(self, device: torch.device) -> None:
        """Look at what is free."""
        self._device = device
        self.release()
        free, self._total = torch.cuda.mem_get_info(device)
        self._available = free + torch.cuda.memory_reserved(device)
        self._usable = max(0, self._available - int(MARGIN * self._total))

    @contextlib.contextmanager
    def bounded(self) -> Iterator[None]:
        """Bound PyTorch's allocator; a tighter bound that the process has given it already stays."""
        before = torch.cuda.get_per_process_memory_fraction(self._device)
        torch.cuda.set_per_process_memory_fraction(min(before, self._usable / self._total), self._device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(before, self._device)

    def refused(self) -> int:
        """Count what PyTorch's allocator has refused."""
        return refused_allocations(self._device)

    def release(self) -> None:
        """Give cached memory back to the GPU, and count the peak anew."""
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def describe(self) -> str:
        """Describe the GPU by its name and its memory."""
        name = torch.cuda.get_device_name(self._device)
        return f"{name} ({self._usable / _GIB:.1f} of {self._total / _GIB:.1f} GiB)"

    def shortage(self) -> str:
        """Say what other processes hold, where it is more than the rank's own CUDA context takes."""
        held = self._total - self._available
        return f"{held / _GIB:.1f} GiB are held by other processes" if held > SHORTAGE * self._total else ""


def open_memory(device: torch.device) -> Memory | None:
    """Return the memory of a device; None for CPUs, whose memory is shared, and whose end kills processes."""
    return GpuMemory(device) if device.type == "cuda" else None


def refused_allocations(device: torch.device) -> int:
    """Return how many allocations PyTorch's allocator has refused on a device so far; 0 for CPUs.

    Not each one becomes an error: where its workspace finds no room, cuDNN takes another algorithm, whose rounding is
    another one, or raises an error that is no `torch.OutOfMemoryError` after the last.
    """
    return int(torch.cuda.memory_stats(device).get("num_ooms", 0)) if device.type == "cuda" else 0


def fits(
    model: nn.Module, config: TrainConfig, world: World, inputs: Callable[[], tuple[Tensor, ...]], memory: Memory
) -> bool:
    """Return whether two optimizer steps of a training fit into the memory of this rank; not collective.

    Args:
        model: the network, on the CPU; it is copied.
        config: the training.
        world: this process among the ranks.
        inputs: gives what the losses need of a micro-batch, on the device, as `Task.device_transform` does.
        memory: of the rank's device.

    Raises:
        RuntimeError: a step fails, and not for lack of memory.
    """
    devices = [world.device] if world.device.type == "cuda" else []
    refused, ran_out = memory.refused(), False
    try:
        with torch.random.fork_rng(devices), memory.bounded():
            _take_steps(copy.deepcopy(model), config, world, inputs)
    except RuntimeError as error:
        ran_out = isinstance(error, torch.OutOfMemoryError)
        if not ran_out and memory.refused() == refused:
            raise
    # Not before here: the error's frames hold the tensors.
    memory.release()
    return not ran_out and memory.refused() == refused


class NotFolded(nn.BatchNorm2d):
    """A norm of one rank that keeps for the backward what `SyncBatchNorm` keeps: LayerScale is not folded into it."""


def keep_as_synchronised(model: nn.Module, sample: Tensor) -> None:
    """Have a network that runs on one rank keep what it keeps with norms over all ranks.

    Args:
        model: the network.
        sample: of the device and the dtype that it computes in; the kernels keep the same with both kinds of norm.
    """
    for module in model.modules():
        if isinstance(module, ScaledResidual) and not use_triton(module.backend, sample, "residual"):
            module.norm.__class__ = NotFolded


def leave_kernels(model: nn.Module) -> None:
    """Have each operator of a network that chooses its backend by itself run in plain PyTorch, as a compiled one does.

    The kernels keep less for the backward than plain PyTorch, which keeps no less than what is compiled from it.
    """
    for module in model.modules():
        if getattr(module, "backend", None) == "auto":
            vars(module)["backend"] = "reference"


def _take_steps(model: nn.Module, config: TrainConfig, world: World, inputs: Callable[[], tuple[Tensor, ...]]) -> None:
    """Take two steps: the first makes the moments, and the second has them and former gradients beside its own."""
    if config.compile:
        leave_kernels(model)
    else:
        defer_compiler()
    dtype = DTYPES[config.precision]
    if config.batch_norm == "sync" and world.device.type == "cuda" and world.size > 1:
        keep_as_synchronised(model, torch.empty(0, dtype=dtype, device=world.device))
    alone = replace(config, zero_stage=0, batch_norm="local", compile=False, cuda_graphs=False)
    network, groups = flatten_parameters(prepare_network(model, alone, world), alone)
    network.to(world.device).train()
    adamw = build_optimizer(network, groups, alone, world.device)
    elements = _COPIES * sum(parameter.numel() for parameter in network.parameters()) + _BUCKETS * BUCKET_ELEMENTS
    held = torch.empty(elements, device=world.device)
    with_loss = LossModel(network, training_losses(config))
    for _ in range(2):
        values = inputs()
        with torch.autocast(world.device.type, dtype, enabled=dtype != torch.float32):
            loss = with_loss(*values)
            if config.cuda_graphs:
                # The graphs keep the memory of their step while the next inputs are made and checkpoints evaluated.
                with torch.no_grad():
                    with_loss(*inputs())
        loss.backward()
        adamw.step()
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
    del held
