# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""Depthwise convolutions at stride 1 over `[N, C, H, W]`: shared kernels, kernels per sample, four sizes at once.

    y[n, c] = sum over taps (i, j) of weight[., i, j] * x[n, c, h + i - K // 2, w + j - K // 2] + bias[.]   (+ x[n, c])

`.` is the channel, or sample and channel for IDConv. A launch works on a window of the channels, so a multi-scale
convolution splits and concatenates by pointer. The input's gradient is the same kernel with the taps turned round; the
weight's gradient is one partial sum for each plane, added over the samples afterwards where they share the weight.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "depthwise_conv",
    "depthwise_conv_reference",
    "dynamic_conv",
    "dynamic_conv_reference",
    "multiscale_conv",
    "multiscale_conv_reference",
]

BLOCK = 1024


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
def _conv_kernel(
    x_ptr, weight_ptr, bias_ptr, y_ptr, planes, C, window, first,
    H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, FLIP: tl.constexpr, HAS_BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr, PER_SAMPLE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of planes, block of pixels). Plane q is sample q // window, channel first + q % window.
    q = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    pixels = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    live = q < planes
    base = ((q // window).to(tl.int64) * C + first + q % window) * (H * W)
    row = q if PER_SAMPLE else q % window
    mask = live[:, None] & (pixels < H * W)[None, :]
    h, w = pixels // W, pixels % W
    acc = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + row, mask=live, other=0.0).to(tl.float32)[:, None]
    if RESIDUAL:
        acc += tl.load(x_ptr + base[:, None] + pixels[None, :], mask=mask, other=0.0).to(tl.float32)
    for i in range(K):
        dh = i - K // 2
        in_rows = (h + dh >= 0) & (h + dh < H)
        for j in tl.static_range(K):
            dw = j - K // 2
            inside = mask & (in_rows & (w + dw >= 0) & (w + dw < W))[None, :]
            x = tl.load(x_ptr + base[:, None] + (pixels + dh * W + dw)[None, :], mask=inside, other=0.0)
            tap = (K - 1 - i) * K + (K - 1 - j) if FLIP else i * K + j
            weight = tl.load(weight_ptr + row * (K * K) + tap, mask=live, other=0.0)
            acc += weight.to(tl.float32)[:, None] * x.to(tl.float32)
    tl.store(y_ptr + base[:, None] + pixels[None, :], acc.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _weight_gradient_kernel(
    x_ptr, grad_ptr, partial_ptr, planes, C, window, first,
    H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of planes, row of taps): K sums over a plane into partial[q, i * K + j]; the sum of the gradient,
    # which is the bias's, into partial[q, K * K].
    q = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    i = tl.program_id(1)
    live = q < planes
    base = ((q // window).to(tl.int64) * C + first + q % window) * (H * W)
    dh = i - K // 2
    columns = tl.arange(0, 8)
    sums = tl.zeros([BLOCK_N, 8], dtype=tl.float32)
    total = tl.zeros([BLOCK_N], dtype=tl.float32)
    for p in range(0, H * W, BLOCK_P):
        pixels = p + tl.arange(0, BLOCK_P)
        mask = live[:, None] & (pixels < H * W)[None, :]
        h, w = pixels // W, pixels % W
        in_rows = (h + dh >= 0) & (h + dh < H)
        grad = tl.load(grad_ptr + base[:, None] + pixels[None, :], mask=mask, other=0.0).to(tl.float32)
        total += tl.sum(grad, 1)
        for j in tl.static_range(K):
            dw = j - K // 2
            inside = mask & (in_rows & (w + dw >= 0) & (w + dw < W))[None, :]
            x = tl.load(x_ptr + base[:, None] + (pixels + dh * W + dw)[None, :], mask=inside, other=0.0)
            sums += tl.where((columns == j)[None, :], tl.sum(grad * x.to(tl.float32), 1)[:, None], 0.0)
    row = partial_ptr + q * (K * K + 1)
    tl.store(row[:, None] + i * K + columns[None, :], sums, mask=live[:, None] & (columns < K)[None, :])
    if i == 0:
        tl.store(row + K * K, total, mask=live)


def _tile(hw: int) -> tuple[int, int]:
    """(Planes, pixels) a program works on: small maps share a program, as many as spill no registers."""
    block_p = min(triton.next_power_of_2(hw), BLOCK)
    return min(BLOCK // block_p, 8), block_p


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, first: int, *, residual: bool, flip: bool
) -> None:
    """Write `y[:, first : first + window]`; `weight` is `[window, 1, K, K]`, or `[N, C, K, K]` of each sample's own."""
    n, c, h, w = x.shape
    per_sample = weight.shape[1] != 1
    window = c if per_sample else weight.shape[0]
    block_n, block_p = _tile(h * w)
    _conv_kernel[(triton.cdiv(n * window, block_n), triton.cdiv(h * w, block_p))](
        x, weight, weight if bias is None else bias, y, n * window, c, window, first, H=h, W=w, K=weight.shape[-1],
        FLIP=flip, HAS_BIAS=bias is not None, RESIDUAL=residual, PER_SAMPLE=per_sample,
        BLOCK_N=block_n, BLOCK_P=block_p,
    )  # fmt: skip


def _weight_gradients(x: Tensor, grad: Tensor, weight: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias for the window, fp32, in the weight's shape and the bias's."""
    n, c, h, w = x.shape
    per_sample = weight.shape[1] != 1
    window, kernel = c if per_sample else weight.shape[0], weight.shape[-1]
    block_n, block_p = _tile(h * w)
    partial = torch.empty((n, window, kernel * kernel + 1), dtype=torch.float32, device=x.device)
    _weight_gradient_kernel[(triton.cdiv(n * window, block_n), kernel)](
        x, grad, partial, n * window, c, window, first, H=h, W=w, K=kernel, BLOCK_N=block_n, BLOCK_P=block_p
    )
    total = partial if per_sample else partial.sum(0)
    return total[..., :-1].reshape(weight.shape), total[..., -1]


class _WindowsFunction(torch.autograd.Function):
    """Consecutive windows of channels, each convolved with a weight of its own size."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: bool, count: int, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[:count], parameters[count:]
        y = torch.empty_like(x)
        first = 0
        for weight, bias in zip(weights, biases, strict=True):
            _convolve(x, weight, bias, y, first, residual=residual, flip=False)
            first += len(weight)
        ctx.save_for_backward(x, *weights)
        ctx.residual = residual
        ctx.bias_dtype = biases[0].dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        grad = grad_outputs[0].contiguous()
        dx = torch.empty_like(x)
        dweights, dbiases = [], []
        first = 0
        for weight in weights:
            _convolve(grad, weight, None, dx, first, residual=ctx.residual, flip=True)
            dweight, dbias = _weight_gradients(x, grad, weight, first)
            dweights.append(dweight.to(weight.dtype))
            dbiases.append(dbias.to(ctx.bias_dtype))
            first += len(weight)
        return dx, None, None, *dweights, *dbiases


class _DynamicConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = torch.empty_like(x)
        _convolve(x, weight, bias, y, 0, residual=False, flip=False)
        ctx.save_for_backward(x, weight)
        ctx.bias_dtype = bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad_outputs[0].contiguous()
        dx = torch.empty_like(x)
        _convolve(grad, weight, None, dx, 0, residual=False, flip=True)
        dweight, dbias = _weight_gradients(x, grad, weight, 0)
        return dx, dweight.to(weight.dtype), dbias.to(ctx.bias_dtype)


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x` plus its depthwise convolution.

    `x` is `[N, C, H, W]`, `weight` `[C, 1, K, K]` with K odd and at most 7, `bias` `[C]`.

    `x` in fp32, bf16 or fp16; weights in any of them, with gradients in their own dtype; sums in fp32.
    """
    return multiscale_conv(x, [weight], [bias])


def multiscale_conv(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """`x` plus the depthwise convolutions of its consecutive channel windows; a weight is `[window, 1, K, K]`."""
    assert sum(len(weight) for weight in weights) == x.shape[1], "the windows must cover the channels"
    return _WindowsFunction.apply(x.contiguous(), True, len(weights), *weights, *biases)


def dynamic_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each sample convolved with kernels of its own: `weight` `[N, C, K, K]`, `bias` `[N, C]`, K odd and at most 7."""
    assert weight.shape[1] > 1, "one channel cannot be told from a shared weight"
    return _DynamicConvFunction.apply(x.contiguous(), weight.contiguous(), bias.contiguous())
