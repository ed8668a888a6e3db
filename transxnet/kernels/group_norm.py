# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""GroupNorm with one group over `[N, C, H, W]`, where a block's branch starts: its input is also the skip connection.

    y = xhat * weight + bias,   xhat = (x - mean) * rstd,   mean and rstd per sample over C, H, W

The operator returns `y`, whole or as two tensors with half of the channels each, and `x`. Its backward reads the
halves' gradients from their own tensors and adds the skip connection's gradient in the same pass. With g = weight * dy,
and s and t the sums of g and of g xhat over the L values of a sample:

    dx = skip + rstd (g - s / L - xhat t / L)      d weight = sum of dy xhat      d bias = sum of dy

Under autocast `y` is written in autocast's dtype; PyTorch's own GroupNorm would return fp32.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

__all__ = ["fork_group_norm", "fork_group_norm_reference"]

BLOCK, CHUNK = 1024, 8192


def fork_group_norm_reference(x: Tensor, norm: nn.GroupNorm, parts: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return `norm(x)` in `parts` along the channels, and `x`, in plain PyTorch."""
    return norm(x).chunk(parts, dim=1), x


@triton.jit
def _load_gradient(first_ptr, second_ptr, n, offsets, mask, border, length, HALVES: tl.constexpr):
    # Gradient at `offsets` of sample n. With HALVES, values before `border` are in the first half's tensor.
    if HALVES:
        first = tl.load(first_ptr + n * border + offsets, mask=mask & (offsets < border), other=0.0)
        at = n * (length - border) + offsets - border
        grad = first.to(tl.float32)
        grad += tl.load(second_ptr + at, mask=mask & (offsets >= border), other=0.0).to(tl.float32)
    else:
        grad = tl.load(first_ptr + n * length + offsets, mask=mask, other=0.0).to(tl.float32)
    return grad


@triton.jit
def _partial_stats_kernel(x_ptr, partial_ptr, length, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    # Program (chunk, sample): sum and squared deviations from the chunk's mean, to partial[sample, chunk, 0:2].
    base = x_ptr + tl.program_id(1).to(tl.int64) * length
    start = tl.program_id(0) * CHUNK
    end = tl.minimum(start + CHUNK, length)
    shift = tl.load(base + start).to(tl.float32)
    first = tl.zeros([BLOCK], dtype=tl.float32)
    second = tl.zeros([BLOCK], dtype=tl.float32)
    for at in range(start, end, BLOCK):
        offsets = at + tl.arange(0, BLOCK)
        x = tl.load(base + offsets, mask=offsets < end, other=0.0).to(tl.float32)
        x = tl.where(offsets < end, x - shift, 0.0)
        first += x
        second += x * x
    total = tl.sum(first, 0)
    count = (end - start).to(tl.float32)
    pointers = partial_ptr + (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * 2
    tl.store(pointers, total + shift * count)
    tl.store(pointers + 1, tl.maximum(tl.sum(second, 0) - total * total / count, 0.0))


@triton.jit
def _apply_kernel(
    x_ptr, partial_ptr, weight_ptr, bias_ptr, y_ptr, mean_ptr, rstd_ptr, length, border, chunks, eps,
    HW: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Program (chunk, sample): merge the sample's partial statistics and normalise the chunk; the first program of a
    # sample stores mean and rstd. In y the values before `border` of all samples come first, then all others.
    n = tl.program_id(1)
    k = tl.arange(0, BLOCK_K)
    pointers = partial_ptr + (n * chunks + k) * 2
    size = tl.minimum(length - k * CHUNK, CHUNK).to(tl.float32)
    total = tl.load(pointers, mask=k < chunks, other=0.0)
    mean = tl.sum(total, 0) / length
    deviation = total / size - mean
    squares = tl.load(pointers + 1, mask=k < chunks, other=0.0) + size * deviation * deviation
    rstd = 1.0 / tl.sqrt(tl.sum(tl.where(k < chunks, squares, 0.0), 0) / length + eps)
    if tl.program_id(0) == 0:
        tl.store(mean_ptr + n, mean)
        tl.store(rstd_ptr + n, rstd)
    base = n.to(tl.int64) * length
    start = tl.program_id(0) * CHUNK
    for at in range(start, tl.minimum(start + CHUNK, length), BLOCK):
        offsets = at + tl.arange(0, BLOCK)
        mask = offsets < length
        c = offsets // HW
        x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + c, mask=mask, other=0.0)
        y = (x - mean) * rstd * weight + tl.load(bias_ptr + c, mask=mask, other=0.0)
        past = tl.num_programs(1).to(tl.int64) * border + n.to(tl.int64) * (length - border) - border
        offsets_out = tl.where(offsets < border, n.to(tl.int64) * border, past) + offsets
        tl.store(y_ptr + offsets_out, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _gradient_sums_kernel(
    x_ptr, first_ptr, second_ptr, mean_ptr, rstd_ptr, partial_ptr, N, C, HW, border,
    HALVES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of channels, sample): sums of dy and dy * xhat over each plane, to partial[0:2, n, c].
    n = tl.program_id(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean = tl.load(mean_ptr + n)
    rstd = tl.load(rstd_ptr + n)
    grad_sum = tl.zeros([BLOCK_C, BLOCK_P], dtype=tl.float32)
    grad_xhat_sum = tl.zeros([BLOCK_C, BLOCK_P], dtype=tl.float32)
    row = n.to(tl.int64)
    for p in range(0, HW, BLOCK_P):
        pixels = p + tl.arange(0, BLOCK_P)
        mask = (c < C)[:, None] & (pixels < HW)[None, :]
        offsets = (c * HW)[:, None] + pixels[None, :]
        x = tl.load(x_ptr + row * C * HW + offsets, mask=mask, other=0.0).to(tl.float32)
        grad = _load_gradient(first_ptr, second_ptr, row, offsets, mask, border, C * HW, HALVES)
        grad_sum += grad
        grad_xhat_sum += grad * (x - mean) * rstd
    tl.store(partial_ptr + n * C + c, tl.sum(grad_sum, 1), mask=c < C)
    tl.store(partial_ptr + (N + n) * C + c, tl.sum(grad_xhat_sum, 1), mask=c < C)


@triton.jit
def _apply_gradient_kernel(
    x_ptr, first_ptr, second_ptr, skip_ptr, mean_ptr, rstd_ptr, weight_ptr, partial_ptr, dx_ptr, N, C, length, border,
    HALVES: tl.constexpr, HW: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # Program (chunk, sample): add up the sums of the sample's planes, then compute the gradient of the chunk.
    n = tl.program_id(1)
    c = tl.arange(0, BLOCK_C)
    weight = tl.load(weight_ptr + c, mask=c < C, other=0.0)
    s = tl.sum(weight * tl.load(partial_ptr + n * C + c, mask=c < C, other=0.0), 0) / length
    t = tl.sum(weight * tl.load(partial_ptr + (N + n) * C + c, mask=c < C, other=0.0), 0) / length
    mean = tl.load(mean_ptr + n)
    rstd = tl.load(rstd_ptr + n)
    base = n.to(tl.int64) * length
    start = tl.program_id(0) * CHUNK
    for at in range(start, tl.minimum(start + CHUNK, length), BLOCK):
        offsets = at + tl.arange(0, BLOCK)
        mask = offsets < length
        x = tl.load(x_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32)
        grad = _load_gradient(first_ptr, second_ptr, n.to(tl.int64), offsets, mask, border, length, HALVES)
        grad *= tl.load(weight_ptr + offsets // HW, mask=mask, other=0.0)
        dx = rstd * (grad - s - (x - mean) * rstd * t)
        dx += tl.load(skip_ptr + base + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + base + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)


class _ForkGroupNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype, parts: int
    ) -> tuple[Tensor, ...]:
        n, c, h, w = x.shape
        length, border = c * h * w, c // parts * h * w
        chunks = triton.cdiv(length, CHUNK)
        partial = torch.empty((n, chunks, 2), dtype=torch.float32, device=x.device)
        mean, rstd = torch.empty((2, n), dtype=torch.float32, device=x.device)
        y = torch.empty(x.numel(), dtype=dtype, device=x.device)
        _partial_stats_kernel[(chunks, n)](x, partial, length, CHUNK=CHUNK, BLOCK=BLOCK)
        _apply_kernel[(chunks, n)](
            x, partial, weight, bias, y, mean, rstd, length, border, chunks, eps,
            HW=h * w, CHUNK=CHUNK, BLOCK=BLOCK, BLOCK_K=triton.next_power_of_2(chunks),
        )  # fmt: skip
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.parts = parts
        return *(part.view(n, -1, h, w) for part in y.split([n * border, n * (length - border)][:parts])), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        first, *second, skip = (grad.contiguous() for grad in grad_outputs)
        n, c, h, w = x.shape
        length, border = c * h * w, c // ctx.parts * h * w
        halves = (first, second[0] if second else first)
        block_p = min(triton.next_power_of_2(h * w), BLOCK)
        block_c = BLOCK // block_p
        partial = torch.empty((2, n, c), dtype=torch.float32, device=x.device)
        _gradient_sums_kernel[(triton.cdiv(c, block_c), n)](
            x, *halves, mean, rstd, partial, n, c, h * w, border,
            HALVES=len(second) > 0, BLOCK_C=block_c, BLOCK_P=block_p,
        )  # fmt: skip
        dx = torch.empty_like(x)
        _apply_gradient_kernel[(triton.cdiv(length, CHUNK), n)](
            x, *halves, skip, mean, rstd, weight, partial, dx, n, c, length, border,
            HALVES=len(second) > 0, HW=h * w, CHUNK=CHUNK, BLOCK=BLOCK, BLOCK_C=triton.next_power_of_2(c),
        )  # fmt: skip
        dbias, dweight = partial.sum(1).to(weight.dtype)
        return dx, dweight, dbias, None, None, None


def fork_group_norm(x: Tensor, norm: nn.GroupNorm, parts: int, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return `norm(x)` in one or two `parts` along the channels, each contiguous, and `x` for the skip connection.

    `x` is `[N, C, H, W]` in fp32, bf16 or fp16, with C divisible by `parts`. `norm(x)` is in `dtype`, the parameters
    are in fp32. Use the `x` returned: the kernel then adds the two gradients of `x`.
    """
    assert norm.num_groups == 1
    assert parts in (1, 2)
    *normed, x = _ForkGroupNormFunction.apply(x.contiguous(), norm.weight, norm.bias, norm.eps, dtype, parts)
    return tuple(normed), x
