# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""BatchNorm, LayerScale, stochastic depth and the residual in one pass over `[N, C, H, W]`.

    out = skip + f[n] * (scale[c] * (norm(x) + addend) + offset[c])

The token mixer passes `addend` (STE's own residual), the feed-forward passes none. `f` is stochastic depth's factor of
the sample. With A = sum(f grad), B = sum(f grad xhat), D = sum(f grad addend) per channel:

    d offset = A          d scale = weight B + bias A + D          d bias = scale A          d weight = scale B
    d x = scale weight rstd (f grad - A / count - xhat B / count)  d addend = f scale grad   d skip = grad
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from transxnet.kernels.common.activation import BLOCK, batch_statistics, split_reduction
from transxnet.kernels.common.statistics import BLOCK_C, BLOCK_S, PartialStats

__all__ = ["scaled_residual", "scaled_residual_reference"]


def scaled_residual_reference(
    skip: Tensor,
    x: Tensor,
    norm: nn.BatchNorm2d,
    scale: Tensor,
    offset: Tensor,
    factor: Tensor | None,
    addend: Tensor | None,
) -> Tensor:
    """Return `out` in plain PyTorch."""
    branch = norm(x) if addend is None else norm(x) + addend
    branch = branch * scale.view(1, -1, 1, 1) + offset.view(1, -1, 1, 1)
    return skip + (branch if factor is None else branch * factor)


@triton.jit
def _residual_fwd_kernel(
    skip_ptr, x_ptr, addend_ptr, out_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, scale_ptr, offset_ptr, factor_ptr,
    total, C: tl.constexpr, HW: tl.constexpr, HAS_FACTOR: tl.constexpr, HAS_ADDEND: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    # Program (block of values): out.
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    offsets = pid * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < total
    plane = offsets // HW
    c = plane % C
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    skip = tl.load(skip_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    y = (x - tl.load(mean_ptr + c)) * (tl.load(rstd_ptr + c) * tl.load(weight_ptr + c)) + tl.load(bias_ptr + c)
    if HAS_ADDEND:
        y += tl.load(addend_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    y = y * tl.load(scale_ptr + c) + tl.load(offset_ptr + c)
    if HAS_FACTOR:
        y *= tl.load(factor_ptr + plane // C, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + offsets, (skip + y).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _residual_sums_kernel(
    grad_ptr, x_ptr, addend_ptr, factor_ptr, mean_ptr, rstd_ptr, partial_ptr, N, C, HW, samples,
    HAS_FACTOR: tl.constexpr, HAS_ADDEND: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (channel c, split): A, B and D over `samples` samples, to partial[split, 0:3, c].
    c = tl.program_id(0)
    split = tl.program_id(1)
    mean = tl.load(mean_ptr + c)
    rstd = tl.load(rstd_ptr + c)
    a = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    b = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    d = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    end = tl.minimum((split + 1) * samples, N)
    for n in range(split * samples, end, BLOCK_N):
        rows = n + tl.arange(0, BLOCK_N)
        inside = rows < end
        base = (rows.to(tl.int64) * C + c) * HW
        for p in range(0, HW, BLOCK_P):
            pixels = p + tl.arange(0, BLOCK_P)
            mask = inside[:, None] & (pixels < HW)[None, :]
            offsets = base[:, None] + pixels[None, :]
            grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            if HAS_FACTOR:
                grad *= tl.load(factor_ptr + rows, mask=inside, other=0.0).to(tl.float32)[:, None]
            x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            a += grad
            b += grad * (x - mean) * rstd
            if HAS_ADDEND:
                d += grad * tl.load(addend_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(partial_ptr + (split * 3) * C + c, tl.sum(tl.sum(a, 1), 0))
    tl.store(partial_ptr + (split * 3 + 1) * C + c, tl.sum(tl.sum(b, 1), 0))
    tl.store(partial_ptr + (split * 3 + 2) * C + c, tl.sum(tl.sum(d, 1), 0))


@triton.jit
def _residual_parameters_kernel(
    partial_ptr, weight_ptr, bias_ptr, scale_ptr, result_ptr, C, splits, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # Program (block of channels): A, B and the gradients of bias, weight and scale, to result[0:5, c].
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < C
    a = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    b = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    d = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    for start in range(0, splits, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        inside = (split < splits)[:, None] & mask[None, :]
        pointers = partial_ptr + (split[:, None] * 3) * C + c[None, :]
        a += tl.load(pointers, mask=inside, other=0.0)
        b += tl.load(pointers + C, mask=inside, other=0.0)
        d += tl.load(pointers + 2 * C, mask=inside, other=0.0)
    a_sum, b_sum = tl.sum(a, 0), tl.sum(b, 0)
    scale = tl.load(scale_ptr + c, mask=mask, other=0.0)
    weight = tl.load(weight_ptr + c, mask=mask, other=0.0)
    tl.store(result_ptr + c, a_sum, mask=mask)
    tl.store(result_ptr + C + c, b_sum, mask=mask)
    tl.store(result_ptr + 2 * C + c, scale * a_sum, mask=mask)
    tl.store(result_ptr + 3 * C + c, scale * b_sum, mask=mask)
    dscale = weight * b_sum + tl.load(bias_ptr + c, mask=mask, other=0.0) * a_sum + tl.sum(d, 0)
    tl.store(result_ptr + 4 * C + c, dscale, mask=mask)


@triton.jit
def _residual_bwd_kernel(
    grad_ptr, x_ptr, factor_ptr, dx_ptr, daddend_ptr, mean_ptr, rstd_ptr, weight_ptr, scale_ptr, sums_ptr,
    inverse_count, total, C: tl.constexpr, HW: tl.constexpr, HAS_FACTOR: tl.constexpr, HAS_ADDEND: tl.constexpr,
    BATCH_STATS: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # Program (block of values): the gradients of x and of addend.
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    offsets = pid * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < total
    plane = offsets // HW
    c = plane % C
    grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if HAS_FACTOR:
        grad *= tl.load(factor_ptr + plane // C, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + c)
    if HAS_ADDEND:
        tl.store(daddend_ptr + offsets, (grad * scale).to(daddend_ptr.dtype.element_ty), mask=mask)
    rstd = tl.load(rstd_ptr + c)
    if BATCH_STATS:
        xhat = (tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32) - tl.load(mean_ptr + c)) * rstd
        grad -= (tl.load(sums_ptr + c) + xhat * tl.load(sums_ptr + C + c)) * inverse_count
    dx = grad * (scale * tl.load(weight_ptr + c) * rstd)
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)


class _ScaledResidualFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, skip: Tensor, x: Tensor, addend: Tensor | None, factor: Tensor | None,
        weight: Tensor, bias: Tensor, scale: Tensor, offset: Tensor, norm: nn.BatchNorm2d,
        partial_stats: PartialStats | None,
    ) -> Tensor:  # fmt: skip
        stats = batch_statistics(x, norm, partial_stats, apply_gelu=False)
        out = torch.empty_like(skip)
        c, hw, total = x.shape[1], x.shape[2] * x.shape[3], x.numel()
        _residual_fwd_kernel[(triton.cdiv(total, BLOCK),)](
            skip, x, x if addend is None else addend, out, stats.mean, stats.rstd, weight, bias, scale, offset,
            x if factor is None else factor, total, C=c, HW=hw, HAS_FACTOR=factor is not None,
            HAS_ADDEND=addend is not None, WIDE=total >= 2**31 - BLOCK, BLOCK=BLOCK,
        )  # fmt: skip
        ctx.save_for_backward(x, addend, factor, weight, bias, scale)
        ctx.stats = stats
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, addend, factor, weight, bias, scale = ctx.saved_tensors
        stats = ctx.stats
        grad = grad_outputs[0].contiguous()
        n, c, hw, total = x.shape[0], x.shape[1], x.shape[2] * x.shape[3], x.numel()
        splits, samples, block_n, block_p = split_reduction(n, c, hw)
        partial = torch.empty((splits, 3, c), dtype=torch.float32, device=x.device)
        options = {"HAS_FACTOR": factor is not None, "HAS_ADDEND": addend is not None}
        given_addend, given_factor = x if addend is None else addend, x if factor is None else factor
        _residual_sums_kernel[(c, splits)](
            grad, x, given_addend, given_factor, stats.mean, stats.rstd, partial, n, c, hw, samples,
            **options, BLOCK_N=block_n, BLOCK_P=block_p,
        )  # fmt: skip
        result = torch.empty((5, c), dtype=torch.float32, device=x.device)
        _residual_parameters_kernel[(triton.cdiv(c, BLOCK_C),)](
            partial, weight, bias, scale, result, c, splits, BLOCK_S=BLOCK_S, BLOCK_C=BLOCK_C
        )
        global_sums, inverse_count = stats.sum_over_ranks(result[:2])
        dx = torch.empty_like(x)
        daddend = None if addend is None else torch.empty_like(addend)
        _residual_bwd_kernel[(triton.cdiv(total, BLOCK),)](
            grad, x, given_factor, dx, dx if daddend is None else daddend, stats.mean, stats.rstd, weight,
            scale, global_sums, inverse_count, total, C=c, HW=hw, **options, BATCH_STATS=stats.from_batch,
            WIDE=total >= 2**31 - BLOCK, BLOCK=BLOCK,
        )  # fmt: skip
        doffset, _, dbias, dweight, dscale = result
        return grad, dx, daddend, None, dweight, dbias, dscale.view_as(scale), doffset, None, None


def scaled_residual(
    skip: Tensor,
    x: Tensor,
    norm: nn.BatchNorm2d,
    scale: Tensor,
    offset: Tensor,
    factor: Tensor | None,
    addend: Tensor | None,
    partial_stats: PartialStats | None = None,
) -> Tensor:
    """Return `skip + factor * (scale * (norm(x) + addend) + offset)`.

    Args:
        skip: `[N, C, H, W]` in fp32, bf16 or fp16.
        x: the branch before its last norm, shaped like `skip`.
        norm: parameters and statistics in fp32.
        scale: LayerScale's weight, C elements in any shape, fp32.
        offset: LayerScale's bias, `[C]`, fp32.
        factor: stochastic depth's factors, `[N, 1, 1, 1]`.
        addend: added to the normalised branch, shaped like `skip`.
        partial_stats: of `x`, if the kernel that wrote `x` took them.

    Raises:
        ValueError: a batch in training has a single value per channel.
    """
    return _ScaledResidualFunction.apply(
        skip.contiguous(), x.contiguous(), None if addend is None else addend.contiguous(), factor,
        norm.weight, norm.bias, scale, offset, norm, partial_stats,
    )  # fmt: skip
