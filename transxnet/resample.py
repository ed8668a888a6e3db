"""Resizing and adaptive means whose gradients are sums in a fixed order, on every device.

PyTorch's own gradients of them add with atomics on a GPU: two runs differ in their last bits, and
`torch.use_deterministic_algorithms(True)` makes them raise. Here a gradient is a product with a small matrix.
"""

import contextlib
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "CubicTaps", "adaptive_mean", "adaptive_mean_gradient", "cubic_taps", "resize_bicubic", "resize_bilinear",
    "resize_bilinear_gradient",
]  # fmt: skip

TAPS = 4
BLOCK = 64
"""Outputs that one product computes."""
CUBIC = -0.75
"""The parameter a of the cubic kernel, PyTorch's."""


@dataclass(frozen=True)
class CubicTaps:
    """The four inputs, and their weights, of each output of a bicubic resizing along one axis.

    They are those of `F.interpolate(mode="bicubic", align_corners=False)`. Outputs come in blocks of `BLOCK`,
    which take a few inputs that follow one another: a block is a product with a small matrix.
    """

    indices: Tensor
    """`[outputs, 4]`, int64, ascending along both axes."""
    weights: Tensor
    """`[outputs, 4]`, fp32 or fp64."""
    ends: Tensor
    """First and last input of each output, `[outputs, 2]`, int32, on the CPU."""
    inputs: Tensor
    """Inputs of each block, `[blocks, width]`, int64."""
    first: list[int]
    """First input of each block."""
    matrices: Tensor
    """`[blocks, BLOCK, width]`; rows beyond the last output are 0."""

    def interpolate(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Return outputs `start` (a multiple of `BLOCK`) to `stop` of the rows of `x` `[N, inputs, M]`."""
        blocks = slice(start // BLOCK, -(-stop // BLOCK))
        inputs = self.inputs[blocks]
        rows = x.index_select(1, inputs.flatten()).unflatten(1, inputs.shape)
        return (self.matrices[blocks] @ rows).flatten(1, 2)[:, : stop - start]

    def add_gradient(self, out: Tensor, grad: Tensor, start: int) -> None:
        """Add to `out` `[N, inputs, M]` the gradient of the rows, given that of the outputs from `start`."""
        blocks = range(start // BLOCK, -(-(start + grad.shape[1]) // BLOCK))
        grad = F.pad(grad, (0, 0, 0, len(blocks) * BLOCK - grad.shape[1]))
        parts = self.matrices[blocks.start : blocks.stop].mT @ grad.unflatten(1, (-1, BLOCK))
        width = self.inputs.shape[1]
        for part, block in zip(parts.unbind(1), blocks, strict=True):
            out[:, self.first[block] : self.first[block] + width] += part


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
        weights = weights.to(dtype)
        starts = torch.arange(0, size_out, BLOCK, device="cpu")
        first = ends[starts, 0].long()
        last = ends[(starts + BLOCK - 1).clamp(max=size_out - 1), 1].long()
        width = int((last - first).max()) + 1
        first = first.clamp(max=size_in - width)
        inputs = first[:, None] + torch.arange(width, device="cpu")
        own = indices - first.repeat_interleave(BLOCK)[:size_out, None]
        chosen = own[:, :, None] == torch.arange(width, device="cpu")
        matrices = F.pad((chosen * weights[:, :, None]).sum(1), (0, 0, 0, len(starts) * BLOCK - size_out))
        return CubicTaps(
            indices.to(device), weights.to(device), ends, inputs.to(device), first.tolist(),
            matrices.unflatten(0, (-1, BLOCK)).to(device),
        )  # fmt: skip


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
        rows = (grad if ctx.axis == 2 else grad.mT).to(taps.weights.dtype).flatten(0, 1)
        out = rows.new_zeros((len(rows), ctx.size, rows.shape[2]))
        with without_autocast(grad):
            taps.add_gradient(out, rows, 0)
        out = out.unflatten(0, grad.shape[:2])
        return (out if ctx.axis == 2 else out.mT).to(grad.dtype).contiguous(), None, None


def adaptive_mean(x: Tensor, size: int) -> Tensor:
    """Return `F.adaptive_avg_pool2d(x, size)`, `[N, C, size, size]` of `[N, C, H, W]`."""
    if torch.compiler.is_exporting() and not all(isinstance(length, int) for length in x.shape[-2:]):
        # ONNX has no such pooling of maps whose size is open; its converter would keep the windows of the example.
        rows, columns = (_mean_weights(size, length).to(x.device, x.dtype) for length in x.shape[-2:])
        return rows @ x @ columns.mT
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
        return _mean_weights(size, length).to(device, dtype)


def _mean_weights(size: int, length: int) -> Tensor:
    """Return the matrix of `_mean_matrix`, fp32 on the CPU."""
    windows = torch.arange(size, device="cpu")[:, None]
    pixels = torch.arange(length, device="cpu")
    first = windows * length // size
    last = -(-(windows + 1) * length // size)
    inside = (pixels >= first) & (pixels < last)
    return inside / (last - first)


class _AdaptiveMeanFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int) -> Tensor:
        ctx.shape = x.shape[-2:]
        return F.adaptive_avg_pool2d(x, size)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return adaptive_mean_gradient(grad_outputs[0], *ctx.shape), None


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `F.interpolate(x, size, mode="bilinear", align_corners=False)`, `[N, C, *size]` of `[N, C, H, W]`."""
    if x.device.type == "cpu" or torch.compiler.is_compiling():
        return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)
    return _BilinearFunction.apply(x, size)


def resize_bilinear_gradient(grad: Tensor, height: int, width: int) -> Tensor:
    """Return the gradient `[N, C, height, width]` of the map, given that of the resized map `[N, C, H', W']`."""
    dtype = at_least_fp32(grad.dtype)
    rows = _bilinear_matrix(height, grad.shape[2], dtype, grad.device)
    columns = _bilinear_matrix(width, grad.shape[3], dtype, grad.device)
    out = torch.empty((*grad.shape[:2], height, width), dtype=grad.dtype, device=grad.device)
    with without_autocast(grad):
        # One sample at a time: logits of a segmentation in fp32 are the largest tensors of its network.
        for own, sample in zip(out, grad, strict=True):
            own.copy_(rows.mT @ (sample.to(dtype) @ columns))
    return out


@functools.lru_cache(maxsize=64)
def _bilinear_matrix(size_in: int, size_out: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the matrix `[size_out, size_in]` whose product with a column of values is the column resized."""
    with torch.inference_mode(False), torch.no_grad():
        columns = torch.eye(size_in, dtype=dtype, device="cpu")[None, :, :, None]
        resized = F.interpolate(columns, size=(size_out, 1), mode="bilinear", align_corners=False)
        return resized[0, :, :, 0].mT.contiguous().to(device)


class _BilinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, size: tuple[int, int]) -> Tensor:
        ctx.shape = x.shape[-2:]
        return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return resize_bilinear_gradient(grad_outputs[0], *ctx.shape), None
