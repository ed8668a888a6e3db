# ruff: noqa: ANN001, ANN201, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
"""Depthwise convolutions at stride 1 over `[N, C, H, W]`: shared kernels with a residual, and a sample's own.

    y[n, c] = sum over taps (i, j) of weight[., i, j] * x[n, c, h + i - K // 2, w + j - K // 2] + bias[.]   (+ x[n, c])

`.` is the channel, or sample and channel for IDConv. The map is cut into tiles of 8 columns and ROWS rows. All that a
tile's outputs depend on is a patch of 16 columns, from 4 to the left of the tile on, and RANGE rows. So the outputs of
many tiles, [tiles, 8 ROWS], are one product of their patches, [tiles, 16 RANGE], with a band matrix that holds the
channel's taps: on tensor cores, one to two instructions for each output where a load for each tap would take dozens.

Backward is one launch of the same kernel with the taps turned round. The patches of the output's gradient, loaded for
the input's gradient, times the input's tiles, [16 RANGE, 8 ROWS], hold every tap's gradient along their diagonals; a
program adds them up over its tiles and sums the diagonals once. The programs' sums are added in a fixed order.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from transxnet.kernels.pixels import gap

__all__ = [
    "Tiling",
    "band_matrix",
    "convolve",
    "depthwise_conv",
    "depthwise_conv_reference",
    "fork_depthwise_conv",
    "fork_depthwise_conv_reference",
    "load_patches",
    "multiscale_conv_reference",
    "place_tiles",
    "place_values",
    "tap_sums",
    "tiling",
]

# Tiles that a program works on at a time: the most that spill no registers on sm_80 and sm_90. Half as many where rows
# are of an odd length: their values are loaded one by one, which takes more registers.
TILES, SAMPLE_TILES = 128, 64


def depthwise_conv_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x` plus its depthwise convolution, in plain PyTorch."""
    return x + F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1])


def fork_depthwise_conv_reference(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The depthwise convolution of `x`, and `x`, in plain PyTorch."""
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1]), x


def multiscale_conv_reference(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """`x` plus the depthwise convolutions of its consecutive parts, in plain PyTorch."""
    parts = x.split([len(weight) for weight in weights], dim=1)
    return torch.cat([depthwise_conv_reference(*part) for part in zip(parts, weights, biases, strict=True)], dim=1)


@triton.jit
def place_tiles(group, N, C, c, HW: tl.constexpr, SAMPLES: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """Of a program's tiles: whether their sample is there, its channel's first value, and the tile's row and column."""
    m = tl.arange(0, SAMPLES * DOWN * ACROSS)
    sample = group * SAMPLES + m // (DOWN * ACROSS)
    return sample < N, (sample.to(tl.int64) * C + c) * HW, m // ACROSS % DOWN, m % ACROSS


@triton.jit
def load_patches(x_ptr, at, live, h, w, H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, RANGE: tl.constexpr):
    """The patches [tiles, 16 RANGE] of tiles at `x_ptr + at`, row `h`, column `w`; and where they are on the map."""
    k = tl.arange(0, 16 * RANGE)
    down, right = k // 16 - K // 2, k % 16 - 4
    row, column = h[:, None] + down[None, :], w[:, None] + right[None, :]
    inside = live[:, None] & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    return tl.load(x_ptr + (at[:, None] + (down * W + right)[None, :]), mask=inside, other=0.0), inside


@triton.jit
def place_values(at, live, h, w, H: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr):
    """Offsets of the tiles' own values, [tiles, 8 ROWS], and which of them are on the map."""
    n = tl.arange(0, 8 * ROWS)
    down, right = n // 8, n % 8
    inside = live[:, None] & (h[:, None] + down[None, :] < H) & (w[:, None] + right[None, :] < W)
    return at[:, None] + (down * W + right)[None, :], inside


@triton.jit
def band_matrix(
    weight_ptr, dtype: tl.constexpr, K: tl.constexpr, TURNED: tl.constexpr, ROWS: tl.constexpr, RANGE: tl.constexpr
):
    """The matrix [16 RANGE, 8 ROWS] that takes a patch to its tile's convolution; TURNED: the taps turned round."""
    k = tl.arange(0, 16 * RANGE)[:, None]
    n = tl.arange(0, 8 * ROWS)[None, :]
    i, j = k // 16 - n // 8, k % 16 - n % 8 + (K // 2 - 4)
    tap = i * K + j
    if TURNED:
        tap = K * K - 1 - tap
    return tl.load(weight_ptr + tap, mask=(i >= 0) & (i < K) & (j >= 0) & (j < K), other=0.0).to(dtype)


@triton.jit
def tap_sums(to_ptr, products, K: tl.constexpr, ROWS: tl.constexpr, RANGE: tl.constexpr):
    """Store the taps' gradients, K * K of them, from the products [16 RANGE, 8 ROWS] of turned patches and tiles."""
    lines = tl.reshape(products, [RANGE, 16, ROWS, 8])
    i = tl.arange(0, 8)
    row = tl.minimum(i[:, None, None, None] + tl.arange(0, ROWS)[None, None, :, None], RANGE - 1)
    by_row = tl.sum(tl.gather(lines, tl.broadcast_to(row, [8, 16, ROWS, 8]), axis=0), axis=2)
    column = tl.minimum(i[None, :, None] + i[None, None, :] + (4 - K // 2), 15)
    taps = tl.sum(tl.gather(by_row, tl.broadcast_to(column, [8, 8, 8]), axis=1), axis=2)
    where = K * K - 1 - (i[:, None] * K + i[None, :])
    tl.store(to_ptr + where, taps, mask=(i < K)[:, None] & (i < K)[None, :])


@triton.jit
def _conv_kernel(
    x_ptr, weight_ptr, bias_ptr, input_ptr, around_ptr, y_ptr, partial_ptr, N, C, gap,
    H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, BACKWARD: tl.constexpr, RESIDUAL: tl.constexpr,
    FORK: tl.constexpr, PER_SAMPLE: tl.constexpr, SAMPLES: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    # Program (group of samples, channel). PER_SAMPLE: the group is a sample, its bias stands behind its taps, and a gap
    # may stand between samples of the output or of its gradient. Backward: x is the output's gradient, y the input's;
    # to partial the group's gradients, of all channels' taps and then of biases, or PER_SAMPLE as they are given. FORK:
    # what comes round the convolution is added to the input's gradient.
    ROWS: tl.constexpr = 4 if K == 5 else 2
    RANGE: tl.constexpr = 4 if K <= 3 else 8
    group, c = tl.program_id(0), tl.program_id(1)
    live, base, down, across = place_tiles(group, N, C, c, H * W, SAMPLES, DOWN, ACROSS)
    plane = group * C + c if PER_SAMPLE else c
    if PER_SAMPLE:
        if BACKWARD:
            x_ptr += group.to(tl.int64) * gap
        else:
            y_ptr += group.to(tl.int64) * gap
        weight_ptr += plane * (K * K + 1)
        bias_ptr = weight_ptr + K * K
    else:
        weight_ptr += plane * (K * K)
        bias_ptr += plane
    band = band_matrix(weight_ptr, x_ptr.dtype.element_ty, K, BACKWARD, ROWS, RANGE)
    bias = 0.0 if BACKWARD else tl.load(bias_ptr).to(tl.float32)
    products = tl.zeros([16 * RANGE, 8 * ROWS], dtype=tl.float32)
    total = tl.zeros([SAMPLES * DOWN * ACROSS, 8 * ROWS], dtype=tl.float32)
    for top in range(0, H, DOWN * ROWS):
        for left in range(0, W, ACROSS * 8):
            h, w = top + down * ROWS, left + across * 8
            at = base + h * W + w
            patches, _ = load_patches(x_ptr, at, live, h, w, H, W, K, RANGE)
            here, inside = place_values(at, live, h, w, H, W, ROWS)
            given = tl.load(input_ptr + here, mask=inside, other=0.0)
            acc = tl.dot(patches, band, input_precision="ieee")
            if BACKWARD:
                grad = tl.load(x_ptr + here, mask=inside, other=0.0).to(tl.float32)
                total += grad
                products = tl.dot(tl.trans(patches), given, products, input_precision="ieee")
                if RESIDUAL:
                    acc += grad
                if FORK:
                    acc += tl.load(around_ptr + here, mask=inside, other=0.0).to(tl.float32)
            else:
                acc += bias
                if RESIDUAL:
                    acc += given.to(tl.float32)
            tl.store(y_ptr + here, acc.to(y_ptr.dtype.element_ty), mask=inside)
    if BACKWARD:
        if PER_SAMPLE:
            taken = partial_ptr + (group.to(tl.int64) * C + c) * (K * K + 1)
            of_bias = taken + K * K
        else:
            taken = partial_ptr + group.to(tl.int64) * (C * (K * K + 1)) + c * (K * K)
            of_bias = partial_ptr + group.to(tl.int64) * (C * (K * K + 1)) + C * (K * K) + c
        tap_sums(taken, products, K, ROWS, RANGE)
        tl.store(of_bias, tl.sum(tl.sum(total, 1), 0))


class Tiling(NamedTuple):
    """Tiles that a program works on at a time, and its warps."""

    samples: int
    down: int
    across: int
    warps: int

    def options(self) -> dict[str, int]:
        """As a launch takes them."""
        return {"SAMPLES": self.samples, "DOWN": self.down, "ACROSS": self.across, "num_warps": self.warps}


def tiling(n: int, height: int, width: int, *, most: int = TILES, per_sample: bool = False) -> Tiling:
    """How a map's tiles are shared out: at most `most` to a program, and 16 at the least, which products need."""
    most = min(most, SAMPLE_TILES) if per_sample else most if width % 2 == 0 else most // 2
    across = min(triton.next_power_of_2(triton.cdiv(width, 8)), most)
    if per_sample:
        down = max(16 // across, min(triton.next_power_of_2(triton.cdiv(height, 2)), most // across))
        return Tiling(1, down, across, down * across // 16)
    samples = max(16 // across, min(triton.next_power_of_2(n), most // across))
    return Tiling(samples, 1, across, min(8, samples * across // 4))


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, given: Tensor | None = None,
    around: Tensor | None = None, residual: bool = False, out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`x` `[N, C, H, W]` convolved; with the forward's input `given`, the gradients: `x` is that of the output then.

    Args:
        x: contiguous, as is all else; with a sample's own weights, part of the channels of a contiguous tensor.
        weight: `[C, 1, K, K]`, or a sample's own taps and its bias behind them, `[N, C, K * K + 1]`.
        bias: `[C]`, for the former.
        given: makes this a backward.
        around: added to the input's gradient.
        residual: whether the forward adds `x`.
        out: where the output goes, with a sample's own weights; such a part as well.

    Returns:
        The output, or the input's gradient; and in fp32 the gradients of taps and bias, to be added up over the first
        dimension, `[groups, C * K * K + C]`, or a sample's own, `[N, C, K * K + 1]`.
    """
    n, c, h, w = x.shape
    per_sample, backward = weight.dim() == 3, given is not None
    kernel = math.isqrt(weight.shape[-1]) if per_sample else weight.shape[-1]
    tiles = tiling(n, h, w, per_sample=per_sample)
    groups = triton.cdiv(n, tiles.samples)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    sums = (n, c, kernel**2 + 1) if per_sample else (groups, c * (kernel**2 + 1))
    partial = torch.empty(sums if backward else 1, dtype=torch.float32, device=x.device)
    _conv_kernel[(groups, c)](
        x, weight, weight if bias is None else bias, x if given is None else given, x if around is None else around,
        y, partial, n, c, gap(x if backward else y),
        H=h, W=w, K=kernel, BACKWARD=backward, RESIDUAL=residual, FORK=around is not None, PER_SAMPLE=per_sample,
        **tiles.options(), num_stages=1,
    )  # fmt: skip
    return y, partial


class _ConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: bool, fork: bool) -> Any:
        ctx.save_for_backward(x, weight)
        ctx.residual, ctx.bias_dtype = residual, bias.dtype
        y = convolve(x, weight, bias, residual=residual)[0]
        return (y, x.view_as(x)) if fork else y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad, *around = (grad.contiguous() for grad in grad_outputs)
        dx, partial = convolve(grad, weight, given=x, around=around[0] if around else None, residual=ctx.residual)
        dweight, dbias = partial.sum(0).split([weight.numel(), len(weight)])
        return dx, dweight.view_as(weight).to(weight.dtype), dbias.to(ctx.bias_dtype), None, None


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x` plus its depthwise convolution.

    `x` is `[N, C, H, W]`, `weight` `[C, 1, K, K]` with K odd and at most 7, `bias` `[C]`.

    `x` in fp32, bf16 or fp16; weights in any of them, with gradients in their own dtype; sums in fp32.
    """
    return _ConvFunction.apply(x.contiguous(), weight, bias, True, False)


def fork_depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor, *, residual: bool = False) -> tuple[Tensor, Tensor]:
    """The depthwise convolution of `x`, and `x`, whose two gradients become one in passing; see `depthwise_conv`.

    With `residual`, `x` is added to the convolution.
    """
    return _ConvFunction.apply(x.contiguous(), weight, bias, residual, True)
