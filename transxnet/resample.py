"""Bicubic resizing and adaptive means whose gradients are sums in a fixed order, on every device.

PyTorch's own gradients of both add with atomics on a GPU: two runs differ in their last bits, and
`torch.use_deterministic_algorithms(True)` makes them raise. Here a gradient is a product with a small matrix.
"""

import contextlib
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["CubicTaps", "adaptive_mean", "adaptive_mean_gradient", "cubic_taps", "resize_bicubic"]

TAPS = 4
CHUNK = 256
"""Outputs whose gradient is added by one product."""
CUBIC = -0.75
"""The parameter a of the cubic kernel, PyTorch's."""


@dataclass(frozen=True)
class CubicTaps:
    """The four inputs, and their weights, of each output of a bicubic resizing along one axis.

    They are those of `F.interpolate(mode="bicubic", align_corners=False)`.
    """

    indices: Tensor
    """`[outputs, 4]`, int64, ascending along both axes."""
    weights: Tensor
    """`[outputs, 4]`, fp32 or fp64."""
    ends: Tensor
    """First and last input of each output, `[outputs, 2]`, on the CPU."""

    def band(self, start: int, stop: int) -> tuple[slice, Tensor]:
        """Return the inputs that outputs `start` to `stop` take, and the matrix `[stop - start, inputs]` to them."""
        inputs = slice(int(self.ends[start, 0]), int(self.ends[stop - 1, 1]) + 1)
        columns = torch.arange(inputs.start, inputs.stop, device=self.indices.device)
        chosen = self.indices[start:stop, :, None] == columns
        return inputs, (chosen * self.weights[start:stop, :, None]).sum(1)


@functools.lru_cache(maxsize=64)
def cubic_taps(size_in: int, size_out: int, dtype: torch.dtype, device: torch.device) -> CubicTaps:
    """Return the taps that resize an axis from `size_in` to `size_out`, with weights in `dtype` on `device`.

    Positions and weights are rounded as PyTorch's compiled code rounds them, which fuses products and sums: at position
    60,000 a difference of one bit in fp32 would move a weight by 4e-3.
    """
    with torch.inference_mode(False), torch.no_grad():
        scale = _rounded(torch.tensor(size_in / size_out, dtype=torch.float64, device="cpu"), dtype)
        outputs = torch.arange(size_out, dtype=torch.float64, device="cpu")
        position = _rounded(scale * (outputs + 0.5) - 0.5, dtype)
        base = position.floor()
        after = _rounded(position - base, dtype)
        before = _rounded(1 - after, dtype)
        far = [_far_weight(_rounded(distance + 1, dtype), dtype) for distance in (after, before)]
        near = [_near_weight(distance, dtype) for distance in (after, before)]
        weights = torch.stack((far[0], near[0], near[1], far[1]), dim=1)
        steps = torch.arange(-1, TAPS - 1, device="cpu")
        indices = (base.long()[:, None] + steps).clamp(0, size_in - 1)
        ends = indices[:, :: TAPS - 1].to(torch.int32, copy=True)
        return CubicTaps(indices.to(device), weights.to(device, dtype), ends)


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).double()


def _near_weight(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the cubic kernel at distances `x` of 0 to 1."""
    inner = _rounded((CUBIC + 2) * x - (CUBIC + 3), dtype)
    return _rounded(_rounded(inner * x, dtype) * x + 1, dtype)


def _far_weight(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the cubic kernel at distances `x` of 1 to 2."""
    inner = _rounded(CUBIC * x - 5 * CUBIC, dtype)
    inner = _rounded(inner * x + 8 * CUBIC, dtype)
    return _rounded(inner * x - 4 * CUBIC, dtype)


def at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    """Return the precision in which sums over values of `dtype` are taken."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context in which products on the device of `x` are in the dtypes of their inputs."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()


def resize_bicubic(x: Tensor, axis: int, size: int) -> Tensor:
    """Return `x` `[N, C, H, W]` with `axis` (2 or 3) resized to `size`; a new tensor also where the size is the same.

    Resizing one axis after the other equals `F.interpolate(mode="bicubic", align_corners=False)` of both.
    """
    if torch.compiler.is_compiling():
        sizes = (size, x.shape[3]) if axis == 2 else (x.shape[2], size)
        return F.interpolate(x, size=sizes, mode="bicubic", align_corners=False)
    return x.clone() if x.shape[axis] == size else _ResizeFunction.apply(x, axis, size)


class _ResizeFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int, size: int) -> Tensor:
        ctx.axis, ctx.size = axis, x.shape[axis]
        taps = cubic_taps(x.shape[axis], size, at_least_fp32(x.dtype), x.device)
        weights = taps.weights if axis == 3 else taps.weights[:, None]
        parts = [x.index_select(axis, taps.indices[:, tap]) for tap in range(TAPS)]
        out = parts[0] * (weights[:, 0] if axis == 3 else weights[..., 0])
        for tap in range(1, TAPS):
            out.addcmul_(parts[tap].to(out.dtype), weights[..., tap])
        return out.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad_outputs[0]
        taps = cubic_taps(ctx.size, grad.shape[ctx.axis], at_least_fp32(grad.dtype), grad.device)
        rows = (grad if ctx.axis == 2 else grad.mT).to(taps.weights.dtype)
        out = rows.new_zeros((*rows.shape[:2], ctx.size, rows.shape[3]))
        with without_autocast(grad):
            for start in range(0, rows.shape[2], CHUNK):
                stop = min(start + CHUNK, rows.shape[2])
                inputs, matrix = taps.band(start, stop)
                out[:, :, inputs] += matrix.mT @ rows[:, :, start:stop]
        return (out if ctx.axis == 2 else out.mT).to(grad.dtype).contiguous(), None, None


def adaptive_mean(x: Tensor, size: int) -> Tensor:
    """Return `F.adaptive_avg_pool2d(x, size)`, `[N, C, size, size]` of `[N, C, H, W]`."""
    if x.device.type == "cpu" or torch.compiler.is_compiling():
        return F.adaptive_avg_pool2d(x, size)
    return _AdaptiveMeanFunction.apply(x, size)


def adaptive_mean_gradient(grad: Tensor, height: int, width: int) -> Tensor:
    """Return the gradient `[N, C, height, width]` of the map, given that of its means `[N, C, S, S]`."""
    dtype = at_least_fp32(grad.dtype)
    rows, columns = (_mean_matrix(grad.shape[-1], length, dtype, grad.device) for length in (height, width))
    with without_autocast(grad):
        return (rows.mT @ grad.to(dtype) @ columns).to(grad.dtype)


@functools.lru_cache(maxsize=64)
def _mean_matrix(size: int, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix `[size, length]` whose product with a column of values is their means over `size` windows."""
    with torch.inference_mode(False), torch.no_grad():
        windows = torch.arange(size, device="cpu")[:, None]
        pixels = torch.arange(length, device="cpu")
        first = windows * length // size
        last = -(-(windows + 1) * length // size)
        inside = (pixels >= first) & (pixels < last)
        return (inside / (last - first)).to(device, dtype)


class _AdaptiveMeanFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        ctx.shape = x.shape[-2:]
        return F.adaptive_avg_pool2d(x, size)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return adaptive_mean_gradient(grad_outputs[0], *ctx.shape), None
