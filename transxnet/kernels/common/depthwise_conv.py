# ruff: noqa: ANN001, ANN201, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
"""Depthwise convolutions at stride 1 over `[N, C, H, W]`, with shared weights or with weights per sample (IDConv).

    y[n, c] = sum over taps (i, j) of weight[., i, j] * x[n, c, h + i - K // 2, w + j - K // 2] + bias[.]   (+ x[n, c])

The dot stands for the channel, or for sample and channel in IDConv. A map is cut into tiles of 8 columns and ROWS rows.
A tile's outputs depend on a patch of 16 columns, starting 4 to the left of the tile, and RANGE rows. The outputs of
many tiles, [tiles, 8 ROWS], are therefore one matrix product of their patches, [tiles, 16 RANGE], with a band matrix
that holds the channel's taps. On tensor cores this takes one to two instructions for each output, where one load for
each tap would take dozens.

The backward is one launch of the same kernel with flipped taps. The patches of the output's gradient, loaded for the
input's gradient, are multiplied by the input's tiles; the diagonals of the product, [16 RANGE, 8 ROWS], add up to the
gradients of the taps. A program accumulates the product over its tiles and sums the diagonals once. The sums of the
programs are added in a fixed order.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from transxnet.kernels.common.tiles import sample_gap

__all__ = [
    "Tiling",
    "band_matrix",
    "convolve",
    "depthwise_conv",
    "depthwise_conv_reference",
    "fork_depthwise_conv",
    "fork_depthwise_conv_reference",
    "load_patches",
    "locate_tiles",
    "locate_values",
    "multiscale_conv_reference",
    "store_tap_gradients",
    "tiling",
]

# Number of tiles that a program works on at a time: the most that spill no registers on sm_80 and sm_90. Maps of an odd
# width take half as many, because their values are loaded one by one, which takes more registers.
TILES, SAMPLE_TILES = 128, 64


def depthwise_conv_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `x` plus its depthwise convolution, in plain PyTorch."""
    return x + F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1])


def fork_depthwise_conv_reference(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the depthwise convolution of `x`, and `x`, in plain PyTorch."""
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1]), x


def multiscale_conv_reference(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Return `x` plus the depthwise convolutions of its consecutive slices, in plain PyTorch.

    `weights` are `[C_i, 1, K_i, K_i]` and `biases` `[C_i]`; slice i has C_i channels.
    """
    parts = x.split([len(weight) for weight in weights], dim=1)
    return torch.cat([depthwise_conv_reference(*part) for part in zip(parts, weights, biases, strict=True)], dim=1)


@triton.jit
def locate_tiles(group, N, C, c, HW: tl.constexpr, SAMPLES: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """Return for each tile: whether its sample exists, the offset of its channel, and its row and column of tiles."""
    m = tl.arange(0, SAMPLES * DOWN * ACROSS)
    sample = group * SAMPLES + m // (DOWN * ACROSS)
    return sample < N, (sample.to(tl.int64) * C + c) * HW, m // ACROSS % DOWN, m % ACROSS


@triton.jit
def load_patches(x_ptr, at, has_sample, h, w, H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, RANGE: tl.constexpr):
    """Return the patches [tiles, 16 RANGE] at `x_ptr + at`, row `h`, column `w`, and the mask of values on the map."""
    k = tl.arange(0, 16 * RANGE)
    down, right = k // 16 - K // 2, k % 16 - 4
    row, column = h[:, None] + down[None, :], w[:, None] + right[None, :]
    inside = has_sample[:, None] & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    return tl.load(x_ptr + (at[:, None] + (down * W + right)[None, :]), mask=inside, other=0.0), inside


@triton.jit
def locate_values(at, has_sample, h, w, H: tl.constexpr, W: tl.constexpr, ROWS: tl.constexpr):
    """Return the offsets of the tiles' own values, [tiles, 8 ROWS], and the mask of values on the map."""
    n = tl.arange(0, 8 * ROWS)
    down, right = n // 8, n % 8
    inside = has_sample[:, None] & (h[:, None] + down[None, :] < H) & (w[:, None] + right[None, :] < W)
    return at[:, None] + (down * W + right)[None, :], inside


@triton.jit
def band_matrix(
    weight_ptr, dtype: tl.constexpr, K: tl.constexpr, FLIPPED: tl.constexpr, ROWS: tl.constexpr, RANGE: tl.constexpr
):
    """Return the matrix [16 RANGE, 8 ROWS] that maps a patch to its tile of outputs; FLIPPED: with flipped taps."""
    k = tl.arange(0, 16 * RANGE)[:, None]
    n = tl.arange(0, 8 * ROWS)[None, :]
    i, j = k // 16 - n // 8, k % 16 - n % 8 + (K // 2 - 4)
    tap = i * K + j
    if FLIPPED:
        tap = K * K - 1 - tap
    return tl.load(weight_ptr + tap, mask=(i >= 0) & (i < K) & (j >= 0) & (j < K), other=0.0).to(dtype)


@triton.jit
def store_tap_gradients(out_ptr, products, K: tl.constexpr, ROWS: tl.constexpr, RANGE: tl.constexpr):
    """Store the K * K gradients of the taps, given the products [16 RANGE, 8 ROWS] of transposed patches and tiles."""
    lines = tl.reshape(products, [RANGE, 16, ROWS, 8])
    i = tl.arange(0, 8)
    row = tl.minimum(i[:, None, None, None] + tl.arange(0, ROWS)[None, None, :, None], RANGE - 1)
    by_row = tl.sum(tl.gather(lines, tl.broadcast_to(row, [8, 16, ROWS, 8]), axis=0), axis=2)
    column = tl.minimum(i[None, :, None] + i[None, None, :] + (4 - K // 2), 15)
    taps = tl.sum(tl.gather(by_row, tl.broadcast_to(column, [8, 8, 8]), axis=1), axis=2)
    index = K * K - 1 - (i[:, None] * K + i[None, :])
    tl.store(out_ptr + index, taps, mask=(i < K)[:, None] & (i < K)[None, :])


@triton.jit
def _conv_kernel(
    x_ptr, weight_ptr, bias_ptr, input_ptr, skip_grad_ptr, y_ptr, partial_ptr, N, C, sample_gap,
    H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, BACKWARD: tl.constexpr, RESIDUAL: tl.constexpr,
    ADD_SKIP: tl.constexpr, PER_SAMPLE: tl.constexpr, SAMPLES: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    # Program (group of samples, channel). PER_SAMPLE: the group is one sample, its bias follows its taps, and
    # `sample_gap` values may lie between the samples of the output or of its gradient. BACKWARD: x is the output's
    # gradient and y the input's gradient; the gradients of the group go to partial, all channels' taps and then the
    # biases, or with PER_SAMPLE in the layout of weight. ADD_SKIP: the skip connection's gradient is added to the
    # input's.
    ROWS: tl.constexpr = 4 if K == 5 else 2
    RANGE: tl.constexpr = 4 if K <= 3 else 8
    group, c = tl.program_id(0), tl.program_id(1)
    has_sample, base, down, across = locate_tiles(group, N, C, c, H * W, SAMPLES, DOWN, ACROSS)
    plane = group * C + c if PER_SAMPLE else c
    if PER_SAMPLE:
        if BACKWARD:
            x_ptr += group.to(tl.int64) * sample_gap
        else:
            y_ptr += group.to(tl.int64) * sample_gap
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
            patches, _ = load_patches(x_ptr, at, has_sample, h, w, H, W, K, RANGE)
            offsets, inside = locate_values(at, has_sample, h, w, H, W, ROWS)
            forward_input = tl.load(input_ptr + offsets, mask=inside, other=0.0)
            acc = tl.dot(patches, band, input_precision="ieee")
            if BACKWARD:
                grad = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
                total += grad
                products = tl.dot(tl.trans(patches), forward_input, products, input_precision="ieee")
                if RESIDUAL:
                    acc += grad
                if ADD_SKIP:
                    acc += tl.load(skip_grad_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
            else:
                acc += bias
                if RESIDUAL:
                    acc += forward_input.to(tl.float32)
            tl.store(y_ptr + offsets, acc.to(y_ptr.dtype.element_ty), mask=inside)
    if BACKWARD:
        if PER_SAMPLE:
            taps_out = partial_ptr + (group.to(tl.int64) * C + c) * (K * K + 1)
            bias_out = taps_out + K * K
        else:
            taps_out = partial_ptr + group.to(tl.int64) * (C * (K * K + 1)) + c * (K * K)
            bias_out = partial_ptr + group.to(tl.int64) * (C * (K * K + 1)) + C * (K * K) + c
        store_tap_gradients(taps_out, products, K, ROWS, RANGE)
        tl.store(bias_out, tl.sum(tl.sum(total, 1), 0))


class Tiling(NamedTuple):
    """Numbers of samples, rows and columns of tiles that a program works on at a time, and its warps."""

    samples: int
    down: int
    across: int
    warps: int

    def options(self) -> dict[str, int]:
        """Return them as arguments of a launch."""
        return {"SAMPLES": self.samples, "DOWN": self.down, "ACROSS": self.across, "num_warps": self.warps}


def tiling(n: int, height: int, width: int, *, max_tiles: int = TILES, per_sample: bool = False) -> Tiling:
    """Return how many tiles a program takes at a time: at most `max_tiles`, and at least 16, as matrix products need.

    Args:
        n: number of samples.
        height: of the map.
        width: of the map.
        max_tiles: the most that spill no registers.
        per_sample: whether a program works on a single sample.
    """
    max_tiles = min(max_tiles, SAMPLE_TILES) if per_sample else max_tiles if width % 2 == 0 else max_tiles // 2
    across = min(triton.next_power_of_2(triton.cdiv(width, 8)), max_tiles)
    if per_sample:
        down = max(16 // across, min(triton.next_power_of_2(triton.cdiv(height, 2)), max_tiles // across))
        return Tiling(1, down, across, down * across // 16)
    samples = max(16 // across, min(triton.next_power_of_2(n), max_tiles // across))
    return Tiling(samples, 1, across, min(8, samples * across // 4))


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, forward_input: Tensor | None = None,
    skip_grad: Tensor | None = None, residual: bool = False, out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Convolve `x` `[N, C, H, W]`, or compute the gradients if `forward_input` is given.

    Args:
        x: the input, or in the backward the output's gradient. Contiguous; with per-sample weights it may be a slice
            along the channels of a contiguous tensor.
        weight: `[C, 1, K, K]`, or per sample the taps followed by the bias, `[N, C, K * K + 1]`.
        bias: `[C]`, for shared weights.
        forward_input: the forward's input; given in the backward alone.
        skip_grad: a gradient to add to the input's gradient.
        residual: whether the forward adds `x` to the convolution.
        out: tensor for the output, for per-sample weights; it may be a slice like `x`.

    Returns:
        The output, or the input's gradient; and the fp32 gradients of taps and bias: `[groups, C * K * K + C]`, to be
        summed over groups, or `[N, C, K * K + 1]` for per-sample weights.
    """
    n, c, h, w = x.shape
    per_sample, backward = weight.dim() == 3, forward_input is not None
    kernel = math.isqrt(weight.shape[-1]) if per_sample else weight.shape[-1]
    tiles = tiling(n, h, w, per_sample=per_sample)
    groups = triton.cdiv(n, tiles.samples)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    sums = (n, c, kernel**2 + 1) if per_sample else (groups, c * (kernel**2 + 1))
    partial = torch.empty(sums if backward else 1, dtype=torch.float32, device=x.device)
    _conv_kernel[(groups, c)](
        x, weight, weight if bias is None else bias, forward_input if backward else x,
        x if skip_grad is None else skip_grad,
        y, partial, n, c, sample_gap(x if backward else y),
        H=h, W=w, K=kernel, BACKWARD=backward, RESIDUAL=residual, ADD_SKIP=skip_grad is not None,
        PER_SAMPLE=per_sample, **tiles.options(), num_stages=1,
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
        grad, *skip_grad = (grad.contiguous() for grad in grad_outputs)
        dx, partial = convolve(
            grad, weight, forward_input=x, skip_grad=skip_grad[0] if skip_grad else None, residual=ctx.residual
        )
        dweight, dbias = partial.sum(0).split([weight.numel(), len(weight)])
        return dx, dweight.view_as(weight).to(weight.dtype), dbias.to(ctx.bias_dtype), None, None


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `x` plus its depthwise convolution.

    Args:
        x: `[N, C, H, W]` in fp32, bf16 or fp16.
        weight: `[C, 1, K, K]` with K odd and at most 7, in any of these dtypes.
        bias: `[C]`.

    Sums are in fp32; gradients are in the dtype of their tensor.
    """
    return _ConvFunction.apply(x.contiguous(), weight, bias, True, False)


def fork_depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor, *, residual: bool = False) -> tuple[Tensor, Tensor]:
    """Return the depthwise convolution of `x`, plus `x` if `residual`; and `x` for a skip connection.

    Use the `x` returned: the kernel then adds the two gradients of `x`. Arguments are those of `depthwise_conv`.
    """
    return _ConvFunction.apply(x.contiguous(), weight, bias, residual, True)
