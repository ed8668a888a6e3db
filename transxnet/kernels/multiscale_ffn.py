# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""The middle of MS-FFN over `[N, C, H, W]`: everything between its two 1x1 convolutions.

    e = norm1(gelu(h))   d = e + depthwise convolutions of 1, 3, 5, 7 taps a side on quarters of e   y = norm2(gelu(d))

Forward: `g = gelu(h)` is written while norm1's statistics are taken; the convolution normalises it on load, splits
and concatenates by pointer, and takes norm2's statistics of its output in passing; one more pass writes `y`.
Backward: the turned convolution takes the sums that norm1's gradient needs from the values it has just made.
Neither `e` nor `gelu(d)` is ever in memory. Saved are `h`, `g` and `d`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.kernels.depthwise_conv import _tile, multiscale_conv_reference
from transxnet.kernels.norm_act import (
    Statistics,
    apply_gelu_norm,
    channel_sums,
    check_batch,
    finish_statistics,
    gelu,
    gelu_norm_gradient,
    running_statistics,
    store_statistics,
)

__all__ = ["norm_multiscale_norm", "norm_multiscale_norm_reference"]


def norm_multiscale_norm_reference(
    h: Tensor, norm1: nn.BatchNorm2d, weights: Sequence[Tensor], biases: Sequence[Tensor], norm2: nn.BatchNorm2d
) -> Tensor:
    """The formula in plain PyTorch."""
    return norm2(F.gelu(multiscale_conv_reference(norm1(F.gelu(h)), weights, biases)))


@triton.jit
def _convolved(
    x_ptr, weight_ptr, base, row, pixels, live, scale, offset,
    H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, AFFINE: tl.constexpr, FLIP: tl.constexpr,
):  # fmt: skip
    # Residual plus convolution at `pixels` of each plane, [planes, pixels] fp32, of x or of x * scale + offset.
    mask = live[:, None] & (pixels < H * W)[None, :]
    h, w = pixels // W, pixels % W
    acc = tl.load(x_ptr + base[:, None] + pixels[None, :], mask=mask, other=0.0).to(tl.float32)
    if AFFINE:
        acc = acc * scale[:, None] + offset[:, None]
    for i in range(K):
        dh = i - K // 2
        in_rows = (h + dh >= 0) & (h + dh < H)
        for j in tl.static_range(K):
            dw = j - K // 2
            inside = mask & (in_rows & (w + dw >= 0) & (w + dw < W))[None, :]
            x = tl.load(x_ptr + base[:, None] + (pixels + dh * W + dw)[None, :], mask=inside, other=0.0).to(tl.float32)
            if AFFINE:
                x = tl.where(inside, x * scale[:, None] + offset[:, None], 0.0)
            tap = (K - 1 - i) * K + (K - 1 - j) if FLIP else i * K + j
            acc += tl.load(weight_ptr + row * (K * K) + tap, mask=live, other=0.0).to(tl.float32)[:, None] * x
    return acc


@triton.jit
def _middle_kernel(
    x_ptr, g_ptr, w1_ptr, w3_ptr, w5_ptr, w7_ptr, b1_ptr, b3_ptr, b5_ptr, b7_ptr,
    mean_ptr, rstd_ptr, weight_ptr, bias_ptr, y_ptr, partial_ptr, N, C, quarter,
    H: tl.constexpr, W: tl.constexpr, BACKWARD: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of planes, block of pixels, scale). Plane q is sample q // window, channel first + q % window.
    # Forward: x is g, normalised on load; of a piece of a plane the sum of gelu(y), and the squares about its mean.
    # Backward: x is d's gradient, y is e's; the sums of y and of y * (g - mean) * rstd.
    scale_index = tl.program_id(2)
    window = tl.where(scale_index == 0, C - 3 * quarter, quarter)
    first = tl.where(scale_index == 0, 0, C - (4 - scale_index) * quarter)
    q = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    live = q < N * window
    n, row = q // window, q % window
    c = first + row
    pixels = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    mask = live[:, None] & (pixels < H * W)[None, :]
    base = (n.to(tl.int64) * C + c) * (H * W)
    mean = tl.load(mean_ptr + c, mask=live, other=0.0)
    rstd = tl.load(rstd_ptr + c, mask=live, other=0.0)
    scale = rstd * tl.load(weight_ptr + c, mask=live, other=0.0).to(tl.float32)
    offset = tl.load(bias_ptr + c, mask=live, other=0.0).to(tl.float32) - mean * scale
    acc = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    if scale_index == 0:
        acc = _convolved(x_ptr, w1_ptr, base, row, pixels, live, scale, offset, H, W, 1, not BACKWARD, BACKWARD)
        if not BACKWARD:
            acc += tl.load(b1_ptr + row, mask=live, other=0.0).to(tl.float32)[:, None]
    elif scale_index == 1:
        acc = _convolved(x_ptr, w3_ptr, base, row, pixels, live, scale, offset, H, W, 3, not BACKWARD, BACKWARD)
        if not BACKWARD:
            acc += tl.load(b3_ptr + row, mask=live, other=0.0).to(tl.float32)[:, None]
    elif scale_index == 2:
        acc = _convolved(x_ptr, w5_ptr, base, row, pixels, live, scale, offset, H, W, 5, not BACKWARD, BACKWARD)
        if not BACKWARD:
            acc += tl.load(b5_ptr + row, mask=live, other=0.0).to(tl.float32)[:, None]
    else:
        acc = _convolved(x_ptr, w7_ptr, base, row, pixels, live, scale, offset, H, W, 7, not BACKWARD, BACKWARD)
        if not BACKWARD:
            acc += tl.load(b7_ptr + row, mask=live, other=0.0).to(tl.float32)[:, None]
    offsets = base[:, None] + pixels[None, :]
    tl.store(y_ptr + offsets, acc.to(y_ptr.dtype.element_ty), mask=mask)
    if BACKWARD:
        g = tl.load(g_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        one = tl.where(mask, acc, 0.0)
        two = one * (g - mean[:, None]) * rstd[:, None]
    else:
        one = tl.where(mask, gelu(acc), 0.0)
        size = tl.minimum(H * W - tl.program_id(1) * BLOCK_P, BLOCK_P)
        two = tl.where(mask, one - (tl.sum(one, 1) / size)[:, None], 0.0)
        two *= two
    here = partial_ptr + ((n * tl.num_programs(1) + tl.program_id(1)) * 2) * C + c
    tl.store(here, tl.sum(one, 1), mask=live)
    tl.store(here + C, tl.sum(two, 1), mask=live)


@triton.jit
def _merge_kernel(
    partial_ptr, mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, batches_ptr, C, rows, pieces, HW, count,
    momentum, eps, PIECE: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # Sums and squares of pieces, [rows, 2, C], to the statistics of all of a channel: exact whatever the mean is.
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = channels < C
    total = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    for start in range(0, rows, BLOCK_S):
        row = start + tl.arange(0, BLOCK_S)
        here = partial_ptr + row[:, None] * (2 * C) + channels[None, :]
        total += tl.load(here, mask=(row < rows)[:, None] & mask[None, :], other=0.0)
    mean = tl.sum(total, 0) / count
    squares = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    for start in range(0, rows, BLOCK_S):
        row = start + tl.arange(0, BLOCK_S)
        inside = (row < rows)[:, None] & mask[None, :]
        here = partial_ptr + row[:, None] * (2 * C) + channels[None, :]
        size = tl.minimum(HW - (row % pieces) * PIECE, PIECE).to(tl.float32)[:, None]
        away = tl.load(here, mask=inside, other=0.0) / size - mean[None, :]
        squares += tl.where(inside, tl.load(here + C, mask=inside, other=0.0) + size * away * away, 0.0)
    store_statistics(
        mean, tl.sum(squares, 0) / count, mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, batches_ptr, channels,
        mask, count, momentum, eps,
    )  # fmt: skip


@triton.jit
def _row_of_taps(
    g_ptr, grad_ptr, base, pixels, live, scale, offset, i, H: tl.constexpr, W: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    # Sums of grad * e over `pixels` for the taps (i, 0:K), in columns 0:K of [planes, 8].
    mask = live[:, None] & (pixels < H * W)[None, :]
    dh = i - K // 2
    h, w = pixels // W, pixels % W
    in_rows = (h + dh >= 0) & (h + dh < H)
    columns = tl.arange(0, 8)
    grad = tl.load(grad_ptr + base[:, None] + pixels[None, :], mask=mask, other=0.0).to(tl.float32)
    sums = tl.where((columns == 7)[None, :], tl.sum(grad, 1)[:, None], 0.0)
    for j in tl.static_range(K):
        dw = j - K // 2
        inside = mask & (in_rows & (w + dw >= 0) & (w + dw < W))[None, :]
        g = tl.load(g_ptr + base[:, None] + (pixels + dh * W + dw)[None, :], mask=inside, other=0.0).to(tl.float32)
        e = tl.where(inside, g * scale[:, None] + offset[:, None], 0.0)
        sums += tl.where((columns == j)[None, :], tl.sum(grad * e, 1)[:, None], 0.0)
    return sums


@triton.jit
def _middle_weights_kernel(
    g_ptr, grad_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, partial_ptr, N, C, quarter,
    H: tl.constexpr, W: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of planes, row of taps, scale): K sums of each plane into partial[n, c, 8 i : 8 i + K], and the sum
    # of the gradient, which is the bias's, into partial[n, c, 7].
    scale_index = tl.program_id(2)
    i = tl.program_id(1)
    kernel = 2 * scale_index + 1
    if i < kernel:
        window = tl.where(scale_index == 0, C - 3 * quarter, quarter)
        first = tl.where(scale_index == 0, 0, C - (4 - scale_index) * quarter)
        q = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        live = q < N * window
        plane = (q // window).to(tl.int64) * C + first + q % window
        c = first + q % window
        scale = tl.load(rstd_ptr + c, mask=live, other=0.0)
        scale *= tl.load(weight_ptr + c, mask=live, other=0.0).to(tl.float32)
        offset = tl.load(bias_ptr + c, mask=live, other=0.0).to(tl.float32)
        offset -= tl.load(mean_ptr + c, mask=live, other=0.0) * scale
        base = plane * (H * W)
        sums = tl.zeros([BLOCK_N, 8], dtype=tl.float32)
        for p in range(0, H * W, BLOCK_P):
            pixels = p + tl.arange(0, BLOCK_P)
            if scale_index == 0:
                sums += _row_of_taps(g_ptr, grad_ptr, base, pixels, live, scale, offset, i, H, W, 1)
            elif scale_index == 1:
                sums += _row_of_taps(g_ptr, grad_ptr, base, pixels, live, scale, offset, i, H, W, 3)
            elif scale_index == 2:
                sums += _row_of_taps(g_ptr, grad_ptr, base, pixels, live, scale, offset, i, H, W, 5)
            else:
                sums += _row_of_taps(g_ptr, grad_ptr, base, pixels, live, scale, offset, i, H, W, 7)
        columns = tl.arange(0, 8)
        tl.store(partial_ptr + (plane * 56 + i * 8)[:, None] + columns[None, :], sums, mask=live[:, None])


def _launch(
    x: Tensor, g: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], stats: Statistics,
    affine: Sequence[Tensor], *, backward: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`_middle_kernel`'s output and its partial sums `[splits, 2, C]`."""
    n, c, h, w = x.shape
    block_n, block_p = _tile(h * w)
    quarter, pieces = c // 4, triton.cdiv(h * w, block_p)
    y = torch.empty_like(x)
    partial = torch.empty((n * pieces, 2, c), dtype=torch.float32, device=x.device)
    _middle_kernel[(triton.cdiv(n * (c - 3 * quarter), block_n), pieces, 4)](
        x, g, *weights, *biases, *stats, *affine, y, partial, n, c, quarter,
        H=h, W=w, BACKWARD=backward, BLOCK_N=block_n, BLOCK_P=block_p,
    )  # fmt: skip
    return y, partial


def _merge(partial: Tensor, norm: nn.BatchNorm2d, x: Tensor) -> Statistics:
    """Statistics of `gelu(x)` from the forward's partial sums; the running ones of `norm` are updated."""
    c, hw = x.shape[1], x.shape[2] * x.shape[3]
    stats = Statistics(*torch.empty((2, c), dtype=torch.float32, device=x.device))
    piece, block = _tile(hw)[1], 32
    _merge_kernel[(triton.cdiv(c, block),)](
        partial, *stats, norm.running_mean, norm.running_var, norm.num_batches_tracked, c, partial.shape[0],
        triton.cdiv(hw, piece), hw, float(x.numel() // c), norm.momentum, norm.eps,
        PIECE=piece, BLOCK_S=32, BLOCK_C=block,
    )  # fmt: skip
    return stats


class _MiddleFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, norm1: nn.BatchNorm2d, norm2: nn.BatchNorm2d, *parameters: Tensor) -> Tensor:
        affine1, affine2, weights, biases = parameters[:2], parameters[2:4], parameters[4:8], parameters[8:]
        g = torch.empty_like(h)
        if norm1.training or norm2.training:
            check_batch(h)
        partial = channel_sums(h, apply_gelu=True, keep=g)
        stats1 = finish_statistics(partial, norm1, h, apply_gelu=True) if norm1.training else running_statistics(norm1)
        d, partial = _launch(g, g, weights, biases, stats1, affine1, backward=False)
        stats2 = _merge(partial, norm2, d) if norm2.training else running_statistics(norm2)
        ctx.save_for_backward(h, g, d, *stats1, *stats2, *affine1, affine2[0], *weights)
        ctx.batch = (norm1.training, norm2.training)
        ctx.bias_dtype = biases[0].dtype
        return apply_gelu_norm(d, stats2, *affine2)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        h, g, d, mean1, rstd1, mean2, rstd2, weight1, bias1, weight2, *weights = ctx.saved_tensors
        stats1, stats2, affine1 = Statistics(mean1, rstd1), Statistics(mean2, rstd2), (weight1, bias1)
        grad = grad_outputs[0].contiguous()
        sums2 = channel_sums(d, apply_gelu=True, grad=grad, stats=stats2).sum(0)
        dd = gelu_norm_gradient(d, grad, stats2, weight2, sums2, batch=ctx.batch[1])
        de, partial = _launch(dd, g, weights, weights, stats1, affine1, backward=True)
        sums1 = partial.sum(0)
        dh = gelu_norm_gradient(h, de, stats1, weight1, sums1, batch=ctx.batch[0])

        n, c, height, width = h.shape
        block_n, block_p = _tile(height * width)
        quarter = c // 4
        taps = torch.empty((n, c, 7, 8), dtype=torch.float32, device=h.device)
        _middle_weights_kernel[(triton.cdiv(n * (c - 3 * quarter), block_n), 7, 4)](
            g, dd, *stats1, *affine1, taps, n, c, quarter, H=height, W=width, BLOCK_N=block_n, BLOCK_P=block_p
        )
        taps = taps.sum(0)
        dweights, dbiases, first = [], [], 0
        for weight in weights:
            kernel, rows = weight.shape[-1], slice(first, first + len(weight))
            dweights.append(taps[rows, :kernel, :kernel].reshape(weight.shape).to(weight.dtype))
            dbiases.append(taps[rows, 0, 7].to(ctx.bias_dtype))
            first += len(weight)
        affine = (sums1[1], sums1[0], sums2[1], sums2[0])
        return dh, None, None, *(value.to(weight1.dtype) for value in affine), *dweights, *dbiases


def norm_multiscale_norm(
    h: Tensor, norm1: nn.BatchNorm2d, weights: Sequence[Tensor], biases: Sequence[Tensor], norm2: nn.BatchNorm2d
) -> Tensor:
    """`norm2(gelu(e + multiscale(e)))` with `e = norm1(gelu(h))`; `h` is `[N, C, H, W]` in fp32, bf16 or fp16.

    `weights` are `[window, 1, K, K]` for K = 1, 3, 5, 7; the last three windows are a quarter of the channels each.

    Raises:
        ValueError: training on a single value per channel.
    """
    assert [weight.shape[-1] for weight in weights] == [1, 3, 5, 7]
    assert all(len(weight) == h.shape[1] // 4 for weight in weights[1:])
    affine = (norm1.weight, norm1.bias, norm2.weight, norm2.bias)
    return _MiddleFunction.apply(h.contiguous(), norm1, norm2, *affine, *weights, *biases)
