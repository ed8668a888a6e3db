# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
"""OSRA's spatial reduction: from `[N, C, H, W]` to the small map `[N, C, h, w]` that keys and values are computed from.

    r = depthwise K x K of x, stride S, padding K // 2         (overlapping spatial reduction)
    s = scale * gelu(norm1(r))
    z = norm2(s)       out = z + depthwise 3 x 3 of z + offset

Source: TransXNet, arXiv 2310.19380, section 3 (OSRA). The norms' partial statistics are taken as r and s are stored,
and the sums for their gradients within the backward kernels. Gradients of taps are partial sums of programs, added in a
fixed order. `strided_conv` computes r from x.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.kernels.common.activation import gelu, gelu_with_gradient
from transxnet.kernels.common.statistics import PartialStats, check_values_per_channel, merge, running_statistics
from transxnet.kernels.osra.strided_conv import (
    ReductionSizes,
    add_to_statistics,
    locate_tile,
    strided_conv,
    strided_conv_input_gradient,
)

__all__ = ["fork_spatial_reduction", "fork_spatial_reduction_reference"]


def fork_spatial_reduction_reference(
    x: Tensor, stride: int, taps: Tensor, norm1: nn.BatchNorm2d, scale: Tensor, norm2: nn.BatchNorm2d,
    local_taps: Tensor, offset: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the reduced map, computed by the formulas above in plain PyTorch, and `x`."""
    c, kernel = x.shape[1], taps.shape[-1]
    reduced = norm1(F.conv2d(x, taps, stride=stride, padding=kernel // 2, groups=c))
    z = norm2(F.conv2d(F.gelu(reduced), scale, groups=c))
    return z + F.conv2d(z, local_taps, offset, padding=1, groups=c), x


@triton.jit
def _scale_kernel(
    reduced_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, scale_ptr, scaled_ptr, partial_ptr, N, C,
    L: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (group of samples, channel): s, and its partial statistics for norm2.
    group, c = tl.program_id(0), tl.program_id(1)
    mean, factor = tl.load(mean_ptr + c), tl.load(rstd_ptr + c) * tl.load(weight_ptr + c)
    shift, scale = tl.load(bias_ptr + c), tl.load(scale_ptr + c).to(tl.float32)
    count = tl.full([], 0.0, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    squares = tl.full([], 0.0, tl.float32)
    for start in range(0, L, BLOCK_P):
        p, plane, inside = locate_tile(group, start, N, C, c, L, BLOCK_N, BLOCK_P)
        reduced = tl.load(reduced_ptr + plane * L + p[None, :], mask=inside, other=0.0).to(tl.float32)
        scaled = gelu((reduced - mean) * factor + shift, scaled_ptr.dtype.element_ty) * scale
        tl.store(scaled_ptr + plane * L + p[None, :], scaled.to(scaled_ptr.dtype.element_ty), mask=inside)
        count, total, squares = add_to_statistics(count, total, squares, scaled, inside)
    tl.store(partial_ptr + group * 2 * C + c, total)
    tl.store(partial_ptr + group * 2 * C + C + c, squares)


@triton.jit
def _neighbours(p, plane, inside, tap, L: tl.constexpr, KEYS_W: tl.constexpr):
    # Offsets of the values that a tap of the 3 x 3 convolution reads, and the mask of values on the map.
    row, column = p // KEYS_W + tap // 3 - 1, p % KEYS_W + tap % 3 - 1
    on_map = inside & ((row >= 0) & (row < L // KEYS_W) & (column >= 0) & (column < KEYS_W))[None, :]
    return plane * L + (row * KEYS_W + column)[None, :], on_map


@triton.jit
def _local_kernel(
    scaled_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, taps_ptr, offset_ptr, out_ptr, N, C,
    L: tl.constexpr, KEYS_W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (group of samples, channel): out.
    group, c = tl.program_id(0), tl.program_id(1)
    factor = tl.load(rstd_ptr + c) * tl.load(weight_ptr + c)
    shift = tl.load(bias_ptr + c) - tl.load(mean_ptr + c) * factor
    for start in range(0, L, BLOCK_P):
        p, plane, inside = locate_tile(group, start, N, C, c, L, BLOCK_N, BLOCK_P)
        own = tl.load(scaled_ptr + plane * L + p[None, :], mask=inside, other=0.0).to(tl.float32)
        out = own * factor + shift + tl.load(offset_ptr + c).to(tl.float32)
        for tap in range(9):
            tap_offsets, on_map = _neighbours(p, plane, inside, tap, L, KEYS_W)
            z = tl.load(scaled_ptr + tap_offsets, mask=on_map, other=0.0).to(tl.float32) * factor + shift
            out += tl.where(on_map, z, 0.0) * tl.load(taps_ptr + c * 9 + tap).to(tl.float32)
        tl.store(out_ptr + plane * L + p[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _local_gradient_kernel(
    grad_ptr, scaled_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, taps_ptr, dz_ptr, partial_ptr, N, C,
    L: tl.constexpr, KEYS_W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (group of samples, channel): dz, and to partial[group, 0:12, c] the gradients of the 9 taps and the offset
    # and the two sums for norm2's gradient.
    group, c = tl.program_id(0), tl.program_id(1)
    mean, rstd = tl.load(mean_ptr + c), tl.load(rstd_ptr + c)
    factor = rstd * tl.load(weight_ptr + c)
    shift = tl.load(bias_ptr + c) - mean * factor
    index = tl.arange(0, 16)
    sums = tl.zeros([16], dtype=tl.float32)
    for start in range(0, L, BLOCK_P):
        p, plane, inside = locate_tile(group, start, N, C, c, L, BLOCK_N, BLOCK_P)
        offsets = plane * L + p[None, :]
        grad = tl.load(grad_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        dz = grad
        for tap in range(9):
            tap_offsets, on_map = _neighbours(p, plane, inside, tap, L, KEYS_W)
            z = tl.load(scaled_ptr + tap_offsets, mask=on_map, other=0.0).to(tl.float32) * factor + shift
            sums += tl.where(index == tap, tl.sum(tl.sum(grad * tl.where(on_map, z, 0.0), 1), 0), 0.0)
            tap_offsets, on_map = _neighbours(p, plane, inside, 8 - tap, L, KEYS_W)
            neighbour = tl.load(grad_ptr + tap_offsets, mask=on_map, other=0.0).to(tl.float32)
            dz += neighbour * tl.load(taps_ptr + c * 9 + tap).to(tl.float32)
        tl.store(dz_ptr + offsets, dz.to(dz_ptr.dtype.element_ty), mask=inside)
        dz = tl.where(inside, dz, 0.0)
        xhat = (tl.load(scaled_ptr + offsets, mask=inside, other=0.0).to(tl.float32) - mean) * rstd
        sums += tl.where(index == 9, tl.sum(tl.sum(grad, 1), 0), 0.0)
        sums += tl.where(index == 10, tl.sum(tl.sum(dz, 1), 0), 0.0)
        sums += tl.where(index == 11, tl.sum(tl.sum(dz * xhat, 1), 0), 0.0)
    tl.store(partial_ptr + (group * 12 + index) * C + c, sums, mask=index < 12)


@triton.jit
def _through_norm(grad, x, mean_ptr, rstd_ptr, weight_ptr, sums_ptr, inverse_count, C, c, BATCH_STATS: tl.constexpr):
    # Gradient of a norm's input `x`, given its output's, and `x` standardised.
    rstd = tl.load(rstd_ptr + c)
    xhat = (x - tl.load(mean_ptr + c)) * rstd
    if BATCH_STATS:
        grad -= (tl.load(sums_ptr + c) + xhat * tl.load(sums_ptr + C + c)) * inverse_count
    return grad * (rstd * tl.load(weight_ptr + c)), xhat


@triton.jit
def _scale_gradient_kernel(
    dz_ptr, scaled_ptr, reduced_ptr, mean1_ptr, rstd1_ptr, weight1_ptr, bias1_ptr, mean2_ptr, rstd2_ptr, weight2_ptr,
    sums_ptr, scale_ptr, dnormed_ptr, partial_ptr, inverse_count, N, C, L: tl.constexpr, BATCH_STATS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (group of samples, channel): gradient of norm1's output, and to partial[group, 0:3, c] the gradient of
    # scale and the two sums for norm1's gradient.
    group, c = tl.program_id(0), tl.program_id(1)
    mean, rstd, weight = tl.load(mean1_ptr + c), tl.load(rstd1_ptr + c), tl.load(weight1_ptr + c)
    shift, scale = tl.load(bias1_ptr + c), tl.load(scale_ptr + c).to(tl.float32)
    dscale = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    grad_sum = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    grad_xhat_sum = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    for start in range(0, L, BLOCK_P):
        p, plane, inside = locate_tile(group, start, N, C, c, L, BLOCK_N, BLOCK_P)
        offsets = plane * L + p[None, :]
        dz = tl.load(dz_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        scaled = tl.load(scaled_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        ds, _ = _through_norm(dz, scaled, mean2_ptr, rstd2_ptr, weight2_ptr, sums_ptr, inverse_count, C, c, BATCH_STATS)
        xhat = (tl.load(reduced_ptr + offsets, mask=inside, other=0.0).to(tl.float32) - mean) * rstd
        value, slope = gelu_with_gradient(xhat * weight + shift, dz_ptr.dtype.element_ty)
        ds = tl.where(inside, ds, 0.0)
        dnormed = ds * scale * slope
        tl.store(dnormed_ptr + offsets, dnormed.to(dnormed_ptr.dtype.element_ty), mask=inside)
        dscale += ds * value
        grad_sum += dnormed
        grad_xhat_sum += dnormed * xhat
    tl.store(partial_ptr + (group * 3) * C + c, tl.sum(tl.sum(dscale, 1), 0))
    tl.store(partial_ptr + (group * 3 + 1) * C + c, tl.sum(tl.sum(grad_sum, 1), 0))
    tl.store(partial_ptr + (group * 3 + 2) * C + c, tl.sum(tl.sum(grad_xhat_sum, 1), 0))


@triton.jit
def _reduce_gradient_kernel(
    dnormed_ptr, reduced_ptr, x_ptr, mean_ptr, rstd_ptr, weight_ptr, sums_ptr, dreduced_ptr, partial_ptr, inverse_count,
    N, C, H: tl.constexpr, W: tl.constexpr, L: tl.constexpr, KEYS_W: tl.constexpr, K: tl.constexpr,
    STRIDE: tl.constexpr, BATCH_STATS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Program (group of samples, channel): dr, and to partial[group, c, 0 : K * K] the gradients of the taps.
    group, c = tl.program_id(0), tl.program_id(1)
    index = tl.arange(0, BLOCK_K)
    dtaps = tl.zeros([BLOCK_K], dtype=tl.float32)
    for start in range(0, L, BLOCK_P):
        p, plane, inside = locate_tile(group, start, N, C, c, L, BLOCK_N, BLOCK_P)
        offsets = plane * L + p[None, :]
        grad = tl.load(dnormed_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        reduced = tl.load(reduced_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        dr, _ = _through_norm(grad, reduced, mean_ptr, rstd_ptr, weight_ptr, sums_ptr, inverse_count, C, c, BATCH_STATS)
        dr = tl.where(inside, dr, 0.0)
        tl.store(dreduced_ptr + offsets, dr.to(dreduced_ptr.dtype.element_ty), mask=inside)
        top, left = p // KEYS_W * STRIDE - K // 2, p % KEYS_W * STRIDE - K // 2
        for tap in range(K * K):
            row, column = top + tap // K, left + tap % K
            on_map = inside & ((row >= 0) & (row < H) & (column >= 0) & (column < W))[None, :]
            x = tl.load(x_ptr + plane * (H * W) + (row * W + column)[None, :], mask=on_map, other=0.0).to(tl.float32)
            dtaps += tl.where(index == tap, tl.sum(tl.sum(dr * x, 1), 0), 0.0)
    tl.store(partial_ptr + (group.to(tl.int64) * C + c) * (K * K) + index, dtaps, mask=index < K * K)


class _SpatialReductionFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, stride: int, taps: Tensor, norm1: nn.BatchNorm2d, weight1: Tensor, bias1: Tensor,
        scale: Tensor, norm2: nn.BatchNorm2d, weight2: Tensor, bias2: Tensor, local_taps: Tensor, offset: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        sizes = ReductionSizes(*x.shape, taps.shape[-1], stride)
        n, c, groups, tiles = sizes.n, sizes.c, sizes.groups(), sizes.tiles()
        reduced, partial = strided_conv(x, taps, sizes)
        scaled, out = torch.empty_like(reduced), torch.empty_like(reduced)
        check_values_per_channel(reduced, norm1)
        values = n * sizes.positions()
        layout = (tiles["BLOCK_N"] * sizes.positions(), values, values)
        stats1 = merge(PartialStats(partial, *layout), norm1) if norm1.training else running_statistics(norm1)
        partial = torch.empty_like(partial)
        _scale_kernel[(groups, c)](
            reduced, stats1.mean, stats1.rstd, weight1, bias1, scale, scaled, partial, n, c, **tiles
        )
        stats2 = merge(PartialStats(partial, *layout), norm2) if norm2.training else running_statistics(norm2)
        _local_kernel[(groups, c)](
            scaled,
            stats2.mean,
            stats2.rstd,
            weight2,
            bias2,
            local_taps,
            offset,
            out,
            n,
            c,
            KEYS_W=sizes.key_size()[1],
            **tiles,
        )
        ctx.save_for_backward(x, reduced, scaled, taps, weight1, bias1, scale, weight2, bias2, local_taps)
        ctx.stats, ctx.sizes, ctx.offset_dtype = (stats1, stats2), sizes, offset.dtype
        return out, x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, reduced, scaled, taps, weight1, bias1, scale, weight2, bias2, local_taps = ctx.saved_tensors
        (stats1, stats2), sizes = ctx.stats, ctx.sizes
        grad, skip_grad = (grad.contiguous() for grad in grad_outputs)
        n, c, groups, tiles, window = sizes.n, sizes.c, sizes.groups(), sizes.tiles(), sizes.kernel**2

        def partial(*sums: int) -> Tensor:
            return torch.empty((groups, *sums), dtype=torch.float32, device=x.device)

        dz, dnormed, dreduced = (torch.empty_like(reduced) for _ in range(3))
        partial_sums = partial(12, c)
        _local_gradient_kernel[(groups, c)](
            grad, scaled, stats2.mean, stats2.rstd, weight2, bias2, local_taps, dz, partial_sums, n, c,
            KEYS_W=sizes.key_size()[1], **tiles,
        )  # fmt: skip
        local = partial_sums.sum(0)
        global_sums, inverse_count = stats2.sum_over_ranks(local[10:])
        partial_sums = partial(3, c)
        _scale_gradient_kernel[(groups, c)](
            dz, scaled, reduced, stats1.mean, stats1.rstd, weight1, bias1, stats2.mean, stats2.rstd, weight2,
            global_sums, scale, dnormed, partial_sums, inverse_count, n, c, BATCH_STATS=stats2.from_batch, **tiles,
        )  # fmt: skip
        scaling = partial_sums.sum(0)
        global_sums, inverse_count = stats1.sum_over_ranks(scaling[1:])
        partial_sums = partial(c, window)
        _reduce_gradient_kernel[(groups, c)](
            dnormed, reduced, x, stats1.mean, stats1.rstd, weight1, global_sums, dreduced, partial_sums, inverse_count,
            n, c, BATCH_STATS=stats1.from_batch, BLOCK_K=triton.next_power_of_2(window), **sizes.sides(), **tiles,
        )  # fmt: skip
        dx = strided_conv_input_gradient(dreduced, taps, skip_grad, sizes)
        return (
            dx, None, partial_sums.sum(0).view_as(taps).to(taps.dtype), None, scaling[2].to(weight1.dtype),
            scaling[1].to(weight1.dtype), scaling[0].view_as(scale).to(scale.dtype), None, local[11].to(weight2.dtype),
            local[10].to(weight2.dtype), local[:9].t().reshape(local_taps.shape).to(local_taps.dtype),
            local[9].to(ctx.offset_dtype),
        )  # fmt: skip


def fork_spatial_reduction(
    x: Tensor, stride: int, taps: Tensor, norm1: nn.BatchNorm2d, scale: Tensor, norm2: nn.BatchNorm2d,
    local_taps: Tensor, offset: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the map `[N, C, h, w]` that keys and values are computed from, and `x` for the queries.

    Use the `x` returned: the kernel then adds the two gradients of `x`.

    Args:
        x: `[N, C, H, W]` in fp32, bf16 or fp16.
        stride: stride of the reduction.
        taps: `[C, 1, K, K]`, applied with a padding of K // 2.
        norm1: the norm after the reduction.
        scale: `[C, 1, 1, 1]`.
        norm2: the norm after the scale.
        local_taps: `[C, 1, 3, 3]`.
        offset: `[C]`, bias of the 3 x 3 convolution.

    Raises:
        ValueError: a batch in training has a single value per channel.
    """
    return _SpatialReductionFunction.apply(
        x.contiguous(), stride, taps, norm1, norm1.weight, norm1.bias, scale, norm2, norm2.weight, norm2.bias,
        local_taps, offset,
    )  # fmt: skip
