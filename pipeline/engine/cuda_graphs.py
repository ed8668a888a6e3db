"""CUDA graphs: the forward and the backward of a micro-batch are recorded once, and replayed by two launches.

Everything around them runs eagerly as without graphs: autograd gives the parameters their gradients, so hooks,
accumulation, reduction, clipping and the update are unchanged. The gradient of the loss is an input of the recorded
backward, so it works with any loss scale and any number of accumulated micro-batches, and rounds as the eager one does.

A recording leaves no trace: BatchNorm's statistics and the random state are restored after it. A step is therefore the
same with graphs and without, and each attempt records anew.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline.common.errors import InputError

WARM_UPS = 3
"""Runs before the recording, in which Triton compiles and tunes kernels, and libraries and NCCL initialise."""
Part = Callable[[], tuple[Tensor, ...]]
"""A computation whose inputs keep their addresses."""
Recorded = tuple[tuple[Tensor, ...], Callable[[], None]]
"""The output tensors of a part, and a function that computes them again in place."""
Record = Callable[[Part, Part], tuple[Recorded, Recorded]]
"""Records two parts that always run in turn; the second reads what the first has saved."""


def record_cuda_graphs(first: Part, second: Part) -> tuple[Recorded, Recorded]:
    """Record two parts as CUDA graphs that share a memory pool, after warm-up runs on another stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            first()
            second()
    torch.cuda.current_stream().wait_stream(side)
    graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    # Other threads call CUDA during the recording: NCCL's watchdog, the loader, the checkpoint writer.
    with torch.cuda.graph(graphs[0], capture_error_mode="thread_local"):
        results = first()
    with torch.cuda.graph(graphs[1], pool=graphs[0].pool(), capture_error_mode="thread_local"):
        more = second()
    return (results, graphs[0].replay), (more, graphs[1].replay)


class Graphed(nn.Module):
    """A model that returns a scalar loss, recorded at its first call, under the autocast of that call, then replayed.

    Parameters and buffers keep their shapes, strides and addresses; their values may change in place. The backward of
    a loss runs before the next loss is computed.
    """

    def __init__(self, model: nn.Module, record: Record = record_cuda_graphs) -> None:
        """Wrap `model`. It is recorded at the first call, so that its parameters may move until then."""
        super().__init__()
        self.model = model
        self._record = record
        self._recording: _Recording | None = None

    def forward(self, *inputs: Tensor) -> Tensor:
        """The loss of `inputs`, which have the shapes and dtypes of those of the first call.

        Raises:
            ValueError: an input has another shape or dtype.
            RuntimeError: a parameter has another address than when it was recorded.
        """
        if self._recording is None:
            self._recording = _Recording(self.model, inputs, self._record)
        self._recording.replay_forward(inputs)
        return _Attach.apply(self._recording, *self._recording.parameters)  # pyright: ignore[reportReturnType]

    def release(self) -> None:
        """Drop the recording, if there is one; the next call records anew.

        NCCL waits for ever at the end of a process group while a graph holds one of its collectives (SyncBatchNorm's).
        """
        if self._recording is not None:
            self._recording.release()
            self._recording = None


class _Recording:
    """The recorded forward and backward of a model, with the fixed memory of inputs, loss and gradients."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], record: Record) -> None:
        self.parameters = tuple(model.parameters())
        self._addresses = [parameter.data_ptr() for parameter in self.parameters]
        self._inputs = tuple(value.clone() for value in inputs)
        device = inputs[0].device
        self._grad_of_loss = torch.ones((), device=device)
        self.number = 0
        kind, losses = device.type, []
        precision, autocast = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

        def forward() -> tuple[Tensor, ...]:
            # A cached cast of a weight would be computed outside the graph that reads it.
            with torch.autocast(kind, precision, enabled=autocast, cache_enabled=False):
                losses.append(model(*self._inputs))
            return (losses[-1].detach(),)

        def backward() -> tuple[Tensor, ...]:
            with torch.autocast(kind, enabled=False), torch.enable_grad():
                # autograd.grad(grad_outputs=…) would import torch's symbolic shapes: a second of every start.
                return torch.autograd.grad(losses.pop() * self._grad_of_loss, self.parameters)

        buffers = list(model.buffers())
        before = [buffer.clone() for buffer in buffers]
        with torch.random.fork_rng([device] if kind == "cuda" else []):
            ((self.loss,), self._forward), (self._grads, self._backward) = record(forward, backward)
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)

    def replay_forward(self, inputs: tuple[Tensor, ...]) -> None:
        """Compute the loss of `inputs` into the fixed memory."""
        for given, static in zip(inputs, self._inputs, strict=True):
            if given.shape != static.shape or given.dtype != static.dtype:
                raise InputError(
                    f"a micro-batch has {tuple(given.shape)} {given.dtype} where CUDA graphs were recorded with "
                    f"{tuple(static.shape)} {static.dtype}: leave out --train.cuda-graphs"
                )
            static.copy_(given)
        if [parameter.data_ptr() for parameter in self.parameters] != self._addresses:
            raise RuntimeError(
                "the weights have moved since the CUDA graphs were recorded: leave out --train.cuda-graphs"
            )
        self.number += 1
        self._forward()

    def replay_backward(self, number: int, grad_of_loss: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the parameters for the loss with this `number`, counted from 1."""
        if number != self.number:
            raise RuntimeError("another loss was computed by the CUDA graphs before this one's backward")
        self._grad_of_loss.copy_(grad_of_loss)
        self._backward()
        # Autograd keeps the returned tensors as gradients; the next replay must not overwrite them.
        return tuple(grad.clone() for grad in self._grads)

    def release(self) -> None:
        """Delete the graphs, although autograd may still refer to this recording."""
        del self._forward, self._backward


class _Attach(torch.autograd.Function):
    """Makes a replayed loss a function of the parameters for autograd."""

    @staticmethod
    def forward(ctx: Any, recording: _Recording, *parameters: Tensor) -> Tensor:
        del parameters
        ctx.recording, ctx.number = recording, recording.number
        return recording.loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_of_loss: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, *ctx.recording.replay_backward(ctx.number, grad_of_loss)
