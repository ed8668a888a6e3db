# ruff: noqa: ANN001, ANN201, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""Depthwise convolutions at stride 1 over `[N, C, H, W]`: shared kernels with a residual, and kernels per sample.

    y[n, c] = sum over taps (i, j) of weight[., i, j] * x[n, c, h + i - K // 2, w + j - K // 2] + bias[.]   (+ x[n, c])

`.` is the channel, or sample and channel for IDConv. A program takes many rows of one channel, [rows, W]. A row of taps
is a band matrix [W, W] with the taps along its diagonals, so that row's part of the convolution is a matrix product on
tensor cores: a load for each tap and pixel would cost tens of instructions where this costs a few.

Backward is one launch of the same kernel with the taps turned round. The output's gradient, shifted by a row of taps
and loaded for the input's gradient, times the input at its own place, is [W, W]; the sums along its diagonals are that
row's weight gradients. Each block of rows has its sums, added afterwards in a fixed order.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "LAUNCH",
    "convolve_rows",
    "depthwise_conv",
    "depthwise_conv_reference",
    "dynamic_conv",
    "dynamic_conv_reference",
    "multiscale_conv_reference",
    "row_block",
]

# Values of a block of rows, and how it is launched: the largest that spill no registers on sm_80 and sm_90.
FORWARD_TILE, BACKWARD_TILE, LEAST_WIDTH = 8192, 4096, 32
LAUNCH = {"num_warps": 8, "num_stages": 1}


def depthwise_conv_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x` plus its depthwise convolution, in plain PyTorch."""
    return x + F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1])


def dynamic_conv_reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution of each sample with kernels of its own, in plain PyTorch."""
    n, c, h, w = x.shape
    kernel = weight.shape[-1]
    flat = weight.reshape(n * c, 1, kernel, kernel)
    out = F.conv2d(x.reshape(1, n * c, h, w), flat, bias.reshape(-1), padding=kernel // 2, groups=n * c)
    return out.reshape(x.shape)


def multiscale_conv_reference(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """`x` plus the depthwise convolutions of its consecutive parts, in plain PyTorch."""
    parts = x.split([len(weight) for weight in weights], dim=1)
    return torch.cat([depthwise_conv_reference(*part) for part in zip(parts, weights, biases, strict=True)], dim=1)


@triton.jit
def convolve_rows(
    x_ptr,
    weight_ptr,
    taken_ptr,
    given,
    acc,
    rows,
    h,
    live,
    scale,
    shift,
    H: tl.constexpr,
    W: tl.constexpr,
    K: tl.constexpr,
    AFFINE: tl.constexpr,
    BACKWARD: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """`acc` [BLOCK_R, BLOCK_W], fp32, plus the convolution of the rows at offsets `rows` of x, which are at height `h`.

    AFFINE: of x * scale + shift. BACKWARD: with the taps turned round, and the taps' gradients from `given`, in x's
    dtype and zero outside, go to taken[0 : K * K].
    """
    w = tl.arange(0, BLOCK_W)
    # The tap that takes column v of the input to column w of the output.
    column = w[:, None] - w[None, :] + K // 2
    for i in range(K):
        dh = i - K // 2
        mask = (live & (h + dh >= 0) & (h + dh < H))[:, None] & (w < W)[None, :]
        x = tl.load(x_ptr + (rows + dh * W)[:, None] + w[None, :], mask=mask, other=0.0)
        if AFFINE:
            x = tl.where(mask, x.to(tl.float32) * scale + shift, 0.0).to(x.dtype)
        tap = (K - 1 - i) * K + (K - 1 - column) if BACKWARD else i * K + column
        band = tl.load(weight_ptr + tap, mask=(column >= 0) & (column < K), other=0.0).to(x.dtype)
        acc = tl.dot(x, band, acc, input_precision="ieee")
        if BACKWARD:
            products = tl.dot(tl.trans(x), given, input_precision="ieee")
            for j in range(K):
                total = tl.sum(tl.sum(tl.where(column == j, products, 0.0), 1), 0)
                tl.store(taken_ptr + (K - 1 - i) * K + (K - 1 - j), total)
    return acc


@triton.jit
def _conv_kernel(
    x_ptr, weight_ptr, bias_ptr, input_ptr, y_ptr, partial_ptr, N, C,
    H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, BACKWARD: tl.constexpr, RESIDUAL: tl.constexpr,
    PER_SAMPLE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    # Program (block of rows, channel, sample if PER_SAMPLE). Rows are those of the channel in all samples, or in one.
    # Backward: x is the output's gradient, y the input's; gradients of the taps and of the bias to
    # partial[sample, block, channel, 0 : K * K + 1].
    c = tl.program_id(1)
    sample = tl.program_id(2)
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = r < (H if PER_SAMPLE else N * H)
    h = r % H
    rows = ((sample + r // H).to(tl.int64) * C + c) * (H * W) + h * W
    w = tl.arange(0, BLOCK_W)
    mask = live[:, None] & (w < W)[None, :]
    plane = sample * C + c if PER_SAMPLE else c
    taken = partial_ptr + ((sample.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)) * C + c) * (K * K + 1)
    given = tl.load(input_ptr + rows[:, None] + w[None, :], mask=mask, other=0.0)
    acc = tl.zeros([BLOCK_R, BLOCK_W], dtype=tl.float32)
    if BACKWARD:
        grad = tl.load(x_ptr + rows[:, None] + w[None, :], mask=mask, other=0.0).to(tl.float32)
        tl.store(taken + K * K, tl.sum(tl.sum(grad, 1), 0))
        if RESIDUAL:
            acc += grad
    else:
        acc += tl.load(bias_ptr + plane).to(tl.float32)
        if RESIDUAL:
            acc += given.to(tl.float32)
    acc = convolve_rows(
        x_ptr, weight_ptr + plane * (K * K), taken, given, acc, rows, h, live, 1.0, 0.0,
        H, W, K, False, BACKWARD, BLOCK_W,
    )  # fmt: skip
    tl.store(y_ptr + rows[:, None] + w[None, :], acc.to(y_ptr.dtype.element_ty), mask=mask)


def row_block(rows: int, width: int, *, backward: bool) -> tuple[int, int]:
    """(Rows, columns) that a program works on."""
    block_w = max(16, triton.next_power_of_2(width))
    tile = BACKWARD_TILE if backward else FORWARD_TILE
    return max(16, min(triton.next_power_of_2(rows), tile // max(block_w, LEAST_WIDTH))), block_w


def _launch(x: Tensor, weight: Tensor, bias: Tensor, given: Tensor | None, *, residual: bool) -> tuple[Tensor, Tensor]:
    """`x` convolved; with the forward's input `given`, the gradients of input, and of the taps and bias by block."""
    n, c, h, w = x.shape
    per_sample, kernel, backward = weight.shape[1] != 1, weight.shape[-1], given is not None
    rows, samples = (h, n) if per_sample else (n * h, 1)
    block_r, block_w = row_block(rows, w, backward=backward)
    blocks = triton.cdiv(rows, block_r)
    y = torch.empty_like(x)
    sums = (samples, blocks, c, kernel * kernel + 1)
    partial = torch.empty(sums if backward else 1, dtype=torch.float32, device=x.device)
    _conv_kernel[(blocks, c, samples)](
        x, weight, bias, x if given is None else given, y, partial, n, c, H=h, W=w, K=kernel, BACKWARD=backward,
        RESIDUAL=residual, PER_SAMPLE=per_sample, BLOCK_R=block_r, BLOCK_W=block_w, **LAUNCH,
    )  # fmt: skip
    return y, partial


class _ConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.residual, ctx.bias_dtype = residual, bias.dtype
        return _launch(x, weight, bias, None, residual=residual)[0]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx, partial = _launch(grad_outputs[0].contiguous(), weight, weight, x, residual=ctx.residual)
        total = partial.sum((0, 1) if weight.shape[1] == 1 else 1)
        dweight = total[..., :-1].reshape(weight.shape)
        return dx, dweight.to(weight.dtype), total[..., -1].to(ctx.bias_dtype), None


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x` plus its depthwise convolution.

    `x` is `[N, C, H, W]`, `weight` `[C, 1, K, K]` with K odd and at most 7, `bias` `[C]`.

    `x` in fp32, bf16 or fp16; weights in any of them, with gradients in their own dtype; sums in fp32.
    """
    return _ConvFunction.apply(x.contiguous(), weight, bias, True)


def dynamic_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each sample convolved with kernels of its own: `weight` `[N, C, K, K]`, `bias` `[N, C]`, K odd and at most 7."""
    assert weight.shape[1] > 1, "one channel cannot be told from a shared weight"
    return _ConvFunction.apply(x.contiguous(), weight.contiguous(), bias.contiguous(), False)
