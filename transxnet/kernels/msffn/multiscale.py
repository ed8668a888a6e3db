# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
"""MS-FFN up to its second norm, over `[N, C, H, W]`.

    h = M x   e = norm1(gelu(h))   d = e + depthwise convolutions with 1, 3, 5, 7 taps a side on quarters of e

Source: TransXNet, arXiv 2310.19380, section 3 (MS-FFN). Forward: the 1x1 expansion writes `h` and `g = gelu(h)` and
takes norm1's partial statistics. The convolution normalises `g` on load, addresses the quarters of the channels by
pointer, and takes the second norm's partial statistics of its output.

Backward: the convolution with flipped taps also takes the sums that norm1's gradient needs, and the gradients of the
taps (see `depthwise_conv`). The expansion's input gradient goes back through norm and GELU as it loads. `e` is never in
memory. `x` and `h` are saved.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.kernels.common.activation import batch_statistics, gelu
from transxnet.kernels.common.depthwise_conv import (
    TILES,
    band_matrix,
    load_patches,
    locate_tiles,
    locate_values,
    multiscale_conv_reference,
    store_tap_gradients,
    tiling,
)
from transxnet.kernels.common.statistics import PartialStats, Statistics
from transxnet.kernels.msffn.expansion import expand_gelu, expand_gelu_gradient

__all__ = ["expand_norm_multiscale", "expand_norm_multiscale_reference"]

BACKWARD_TILES = TILES // 2


def expand_norm_multiscale_reference(
    x: Tensor, matrix: Tensor, norm: nn.BatchNorm2d, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """Return d in plain PyTorch."""
    return multiscale_conv_reference(norm(F.gelu(F.conv2d(x, matrix))), weights, biases)


@triton.jit
def _approximate_mean(x_ptr, inside, taps_ptr, scale, shift, offset, dtype: tl.constexpr, K: tl.constexpr):
    # A value near the mean of the channel's gelu(d), subtracted so that a large mean does not cancel in the squares:
    # gelu of d where e is its mean over the first tiles.
    e = tl.load(x_ptr, mask=inside, other=0.0).to(tl.float32) * scale + shift
    mean = tl.sum(tl.sum(tl.where(inside, e, 0.0), 1), 0) / tl.sum(tl.sum(inside.to(tl.float32), 1), 0)
    taps = tl.arange(0, 64)
    weight = tl.sum(tl.load(taps_ptr + taps, mask=taps < K * K, other=0.0).to(tl.float32), 0)
    return gelu(mean * (1.0 + weight) + offset, dtype)


@triton.jit
def _one_scale(
    x_ptr, h_ptr, taps_ptr, offset_ptr, dtaps_ptr, dbias_ptr, y_ptr, group, N, C, c, mean, rstd, scale, shift,
    H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, BACKWARD: tl.constexpr,
    SAMPLES: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    # `_multiscale_kernel` for a channel of one scale. Returns the program's two sums and, in the forward, the value
    # that was subtracted from each term of the first.
    ROWS: tl.constexpr = 4 if K == 5 else 2
    RANGE: tl.constexpr = 4 if K <= 3 else 8
    dtype = x_ptr.dtype.element_ty
    size: tl.constexpr = SAMPLES * ACROSS
    has_sample, base, down, across = locate_tiles(group, N, C, c, H * W, SAMPLES, 1, ACROSS)
    products = tl.zeros([16 * RANGE, 8 * ROWS], dtype=tl.float32)
    if K == 1:
        band = tl.load(taps_ptr).to(tl.float32)
    else:
        band = band_matrix(taps_ptr, dtype, K, BACKWARD, ROWS, RANGE)
    offset = 0.0 if BACKWARD else tl.load(offset_ptr).to(tl.float32)
    first = tl.zeros([size, 8 * ROWS], dtype=tl.float32)
    second = tl.zeros([size, 8 * ROWS], dtype=tl.float32)
    dbias = tl.zeros([size, 8 * ROWS], dtype=tl.float32)
    dtap = tl.zeros([size, 8 * ROWS], dtype=tl.float32)
    pivot = 0.0
    if not BACKWARD:
        first_tiles, in_first_tiles = locate_values(base + across * 8, has_sample, down, across * 8, H, W, ROWS)
        pivot = _approximate_mean(x_ptr + first_tiles, in_first_tiles, taps_ptr, scale, shift, offset, dtype, K)
    for top in range(0, H, ROWS):
        for left in range(0, W, ACROSS * 8):
            h, w = top + down, left + across * 8
            at = base + h * W + w
            offsets, inside = locate_values(at, has_sample, h, w, H, W, ROWS)
            own = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
            g = own
            e = own.to(dtype)
            if BACKWARD:
                g = gelu(tl.load(h_ptr + offsets, mask=inside, other=0.0).to(tl.float32), dtype)
                e = (g * scale + tl.where(inside, shift, 0.0)).to(dtype)
                acc = own
                dbias += own
            else:
                acc = own * scale + shift + offset
            if K == 1:
                if BACKWARD:
                    dtap += own * e.to(tl.float32)
                    acc += own * band
                else:
                    acc += (own * scale + shift) * band
            else:
                patches, on_map = load_patches(x_ptr, at, has_sample, h, w, H, W, K, RANGE)
                if BACKWARD:
                    products = tl.dot(tl.trans(patches), e, products, input_precision="ieee")
                else:
                    patches = (patches.to(tl.float32) * scale + tl.where(on_map, shift, 0.0)).to(dtype)
                acc += tl.dot(patches, band, input_precision="ieee")
            tl.store(y_ptr + offsets, acc.to(dtype), mask=inside)
            if BACKWARD:
                acc = tl.where(inside, acc, 0.0)
                second += acc * (g - mean) * rstd
            else:
                acc = tl.where(inside, gelu(acc, dtype), 0.0)
                acc = tl.where(inside, acc - pivot, 0.0)
                second += acc * acc
            first += acc
    if BACKWARD:
        if K == 1:
            tl.store(dtaps_ptr, tl.sum(tl.sum(dtap, 1), 0))
        else:
            store_tap_gradients(dtaps_ptr, products, K, ROWS, RANGE)
        tl.store(dbias_ptr, tl.sum(tl.sum(dbias, 1), 0))
    return tl.sum(tl.sum(first, 1), 0), tl.sum(tl.sum(second, 1), 0), pivot


@triton.jit
def _multiscale_kernel(
    x_ptr, h_ptr, w1_ptr, w3_ptr, w5_ptr, w7_ptr, b1_ptr, b3_ptr, b5_ptr, b7_ptr,
    mean_ptr, rstd_ptr, weight_ptr, bias_ptr, y_ptr, partial_ptr, N, C, quarter, pitch,
    H: tl.constexpr, W: tl.constexpr, BACKWARD: tl.constexpr, SAMPLES: tl.constexpr, ACROSS: tl.constexpr,
):  # fmt: skip
    # Program (group of samples, channel); a group has a row of `pitch` values in partial.
    #
    # Forward: x is g, normalised on load; the row holds the sum of gelu(y) and its squared deviations from the mean.
    #
    # Backward: x is d's gradient, y is e's gradient; the row holds, with g = gelu(h), the sums of y and of y * (g -
    # mean) * rstd, and then for one scale after the other the gradients of taps, [channels, K * K], and of biases.
    group, c = tl.program_id(0), tl.program_id(1)
    mean = tl.load(mean_ptr + c)
    rstd = tl.load(rstd_ptr + c)
    scale = rstd * tl.load(weight_ptr + c).to(tl.float32)
    shift = tl.load(bias_ptr + c).to(tl.float32) - mean * scale
    window = C - 3 * quarter
    sums = partial_ptr + group.to(tl.int64) * pitch
    gradients = sums + 2 * C
    if c < window:
        first_sum, second_sum, pivot = _one_scale(
            x_ptr, h_ptr, w1_ptr + c, b1_ptr + c, gradients + c, gradients + window + c, y_ptr,
            group, N, C, c, mean, rstd, scale, shift, H, W, 1, BACKWARD, SAMPLES, ACROSS,
        )  # fmt: skip
    elif c < window + quarter:
        row = c - window
        gradients += 2 * window
        first_sum, second_sum, pivot = _one_scale(
            x_ptr, h_ptr, w3_ptr + row * 9, b3_ptr + row, gradients + row * 9, gradients + 9 * quarter + row, y_ptr,
            group, N, C, c, mean, rstd, scale, shift, H, W, 3, BACKWARD, SAMPLES, ACROSS,
        )  # fmt: skip
    elif c < window + 2 * quarter:
        row = c - window - quarter
        gradients += 2 * window + 10 * quarter
        first_sum, second_sum, pivot = _one_scale(
            x_ptr, h_ptr, w5_ptr + row * 25, b5_ptr + row, gradients + row * 25, gradients + 25 * quarter + row, y_ptr,
            group, N, C, c, mean, rstd, scale, shift, H, W, 5, BACKWARD, SAMPLES, ACROSS,
        )  # fmt: skip
    else:
        row = c - window - 2 * quarter
        gradients += 2 * window + 36 * quarter
        first_sum, second_sum, pivot = _one_scale(
            x_ptr, h_ptr, w7_ptr + row * 49, b7_ptr + row, gradients + row * 49, gradients + 49 * quarter + row, y_ptr,
            group, N, C, c, mean, rstd, scale, shift, H, W, 7, BACKWARD, SAMPLES, ACROSS,
        )  # fmt: skip
    if not BACKWARD:
        size = (tl.minimum(N - group * SAMPLES, SAMPLES) * (H * W)).to(tl.float32)
        second_sum = tl.maximum(second_sum - first_sum * first_sum / size, 0.0)
        first_sum += pivot * size
    tl.store(sums + c, first_sum)
    tl.store(sums + C + c, second_sum)


def _launch(
    x: Tensor, h: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], stats: Statistics,
    affine: tuple[Tensor, Tensor], *, backward: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the output of `_multiscale_kernel`, and a row of partial sums for each group of samples."""
    n, c, height, width = x.shape
    tiles = tiling(n, height, width, max_tiles=BACKWARD_TILES if backward else TILES)
    quarter, groups = c // 4, triton.cdiv(n, tiles.samples)
    y = torch.empty_like(x)
    pitch = 4 * c + 80 * quarter if backward else 2 * c
    partial = torch.empty((groups, pitch), dtype=torch.float32, device=x.device)
    _multiscale_kernel[(groups, c)](
        x, h, *weights, *biases, stats.mean, stats.rstd, *affine, y, partial, n, c, quarter, pitch, H=height, W=width,
        BACKWARD=backward, SAMPLES=tiles.samples, ACROSS=tiles.across, num_warps=tiles.warps, num_stages=1,
    )  # fmt: skip
    return y, partial


class _ExpandFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, matrix: Tensor, norm: nn.BatchNorm2d, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        affine, weights, biases = (parameters[0], parameters[1]), parameters[2:6], parameters[6:]
        low_matrix = matrix.flatten(1).to(x.dtype)
        h, g, partial_stats = expand_gelu(x, low_matrix, take_stats=norm.training)
        stats = batch_statistics(h, norm, partial_stats, apply_gelu=True)
        d, partial = _launch(g, g, weights, biases, stats, affine, backward=False)
        ctx.save_for_backward(x, low_matrix, h, *affine, *weights)
        ctx.stats, ctx.matrix = stats, (matrix.shape, matrix.dtype)
        ctx.bias_dtype = biases[0].dtype
        ctx.mark_non_differentiable(partial)
        ctx.set_materialize_grads(False)
        return d, partial

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, low_matrix, h, weight, bias, *weights = ctx.saved_tensors
        stats = ctx.stats
        grad = grad_outputs[0].contiguous()
        de, partial = _launch(grad, h, weights, weights, stats, (weight, bias), backward=True)
        sizes = [size for weight in weights for size in (weight.numel(), len(weight))]
        sums, *gradients = partial.sum(0).split([2 * h.shape[1], *sizes])
        sums = sums.view(2, -1)
        dweights = [
            gradient.view_as(weight).to(weight.dtype) for gradient, weight in zip(gradients[::2], weights, strict=True)
        ]
        dbiases = [gradient.to(ctx.bias_dtype) for gradient in gradients[1::2]]
        global_sums, inverse_count = stats.sum_over_ranks(sums)
        norm = (stats.mean, stats.rstd, weight)
        dx, dmatrix = expand_gelu_gradient(
            x, low_matrix, h, de, norm, global_sums, inverse_count, from_batch=stats.from_batch
        )
        shape, dtype = ctx.matrix
        affine = (sums[1].to(weight.dtype), sums[0].to(weight.dtype))
        return dx, dmatrix.view(shape).to(dtype), None, *affine, *dweights, *dbiases


def expand_norm_multiscale(
    x: Tensor, matrix: Tensor, norm: nn.BatchNorm2d, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[Tensor, PartialStats]:
    """Return `e + multiscale(e)` with `e = norm(gelu(conv1x1(x)))`, and the partial statistics of its GELU.

    Args:
        x: `[N, C_in, H, W]` in fp32, bf16 or fp16.
        matrix: `[C, C_in, 1, 1]`.
        norm: the norm after GELU, over C channels.
        weights: `[C_i, 1, K, K]` for K = 1, 3, 5, 7; the last three have C // 4 channels each.
        biases: `[C_i]` each.

    Raises:
        ValueError: a batch in training has a single value per channel.
    """
    assert [weight.shape[-1] for weight in weights] == [1, 3, 5, 7]
    assert all(len(weight) == len(matrix) // 4 for weight in weights[1:])
    d, partial = _ExpandFunction.apply(x.contiguous(), matrix, norm, norm.weight, norm.bias, *weights, *biases)
    n, _, height, width = d.shape
    values = n * height * width
    return d, PartialStats(
        partial.view(len(partial), 2, -1), tiling(n, height, width).samples * height * width, values, values
    )
