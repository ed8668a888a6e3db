"""CUDA graphs: forward and backward of a micro-batch are recorded once, and replayed by two launches from then on.

What surrounds them stays as it is without. Parameters get their gradients from autograd, so hooks, accumulation,
reduction, clipping and update run eagerly. The gradient of the loss is an input of the recorded backward, which so
computes with whatever loss scale and share of an accumulation there is, rounding as the eager one does.

A recording leaves no trace: BatchNorm's statistics and the random state are put back after it. So a step is the same
with graphs and without, and one attempt's recording needs nothing of a former's.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pipeline.common.errors import InputError

WARM_UPS = 3
"""Runs before the recording, in which kernels are compiled and tuned, and libraries and NCCL set themselves up."""
Part = Callable[[], tuple[Tensor, ...]]
"""Computes from tensors that stay where they are."""
Recorded = tuple[tuple[Tensor, ...], Callable[[], None]]
"""Where a part leaves what it computes, and what computes it again."""
Record = Callable[[Part, Part], tuple[Recorded, Recorded]]
"""Records two parts that always run in turn, the second on what the first keeps."""


def record_cuda_graphs(first: Part, second: Part) -> tuple[Recorded, Recorded]:
    """Record two parts as CUDA graphs that share their memory; both have run in turn before, on another stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            first()
            second()
    torch.cuda.current_stream().wait_stream(side)
    graphs = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    # Other threads (NCCL's watchdog, the loader's, the one that writes a checkpoint) call CUDA meanwhile.
    with torch.cuda.graph(graphs[0], capture_error_mode="thread_local"):
        results = first()
    with torch.cuda.graph(graphs[1], pool=graphs[0].pool(), capture_error_mode="thread_local"):
        more = second()
    return (results, graphs[0].replay), (more, graphs[1].replay)


class Graphed(nn.Module):
    """`model`, which returns a scalar loss, recorded at its first call in the autocast found there, then replayed.

    Shapes, strides and storage of parameters and buffers must stay; values may change in place. A loss is followed by
    its backward before the next one is computed.
    """

    def __init__(self, model: nn.Module, record: Record = record_cuda_graphs) -> None:
        """Nothing is recorded yet: parameters may still move."""
        super().__init__()
        self.model = model
        self._record = record
        self._recording: _Recording | None = None

    def forward(self, *inputs: Tensor) -> Tensor:
        """The loss of `inputs`, of which each has the shape and dtype of the first call's.

        Raises:
            ValueError: an input has another shape or dtype.
            RuntimeError: a parameter lies elsewhere than when it was recorded.
        """
        if self._recording is None:
            self._recording = _Recording(self.model, inputs, self._record)
        self._recording.replay_forward(inputs)
        return _Attach.apply(self._recording, *self._recording.parameters)  # pyright: ignore[reportReturnType]

    def forget(self) -> None:
        """Let go of the recording, if there is one; the next call records anew.

        NCCL does not let ranks part while a graph holds a collective of theirs (SyncBatchNorm's): it waits for ever.
        """
        if self._recording is not None:
            self._recording.release()
            self._recording = None


class _Recording:
    """Forward and backward of a model, on inputs, loss and gradients that stay where they are."""

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
                # Given the gradient as such, autograd would import torch's symbolic shapes: a second of each start.
                return torch.autograd.grad(losses.pop() * self._grad_of_loss, self.parameters)

        buffers = list(model.buffers())
        before = [buffer.clone() for buffer in buffers]
        with torch.random.fork_rng([device] if kind == "cuda" else []):
            ((self.loss,), self._forward), (self._grads, self._backward) = record(forward, backward)
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)

    def replay_forward(self, inputs: tuple[Tensor, ...]) -> None:
        """Compute the loss of `inputs`."""
        for given, static in zip(inputs, self._inputs, strict=True):
            if given.shape != static.shape or given.dtype != static.dtype:
                raise InputError(
                    f"a micro-batch has {tuple(given.shape)} {given.dtype} where CUDA graphs were recorded with "
                    f"{tuple(static.shape)} {static.dtype}: leave out --train.cuda-graphs"
                )
            static.copy_(given)
        if [parameter.data_ptr() for parameter in self.parameters] != self._addresses:
            raise RuntimeError("the weights lie elsewhere than when CUDA graphs were recorded: leave out cuda_graphs")
        self.number += 1
        self._forward()

    def replay_backward(self, number: int, grad_of_loss: Tensor) -> tuple[Tensor, ...]:
        """Gradients of the parameters, of the loss that was computed as the `number`th."""
        if number != self.number:
            raise RuntimeError("another loss was computed by the CUDA graphs before this one's backward")
        self._grad_of_loss.copy_(grad_of_loss)
        self._backward()
        # Autograd keeps what it is given as the parameter's gradient, which the next replay must not overwrite.
        return tuple(grad.clone() for grad in self._grads)

    def release(self) -> None:
        """Let go of the graphs, whatever of autograd's still refers to this recording."""
        del self._forward, self._backward


class _Attach(torch.autograd.Function):
    """A replayed loss as autograd sees it: a function of the parameters."""

    @staticmethod
    def forward(ctx: Any, recording: _Recording, *parameters: Tensor) -> Tensor:
        del parameters
        ctx.recording, ctx.number = recording, recording.number
        return recording.loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_of_loss: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, *ctx.recording.replay_backward(ctx.number, grad_of_loss)
