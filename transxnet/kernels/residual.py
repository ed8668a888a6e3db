# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""BatchNorm, LayerScale, stochastic depth and the residual in one pass over `[N, C, H, W]`.

    out = skip + f[n] * (scale[c] * (norm(x) + addend) + offset[c])

`addend` is there at the end of the token mixer (STE's own residual) and absent at the end of the feed-forward; `f` is
stochastic depth's factor of the sample. With A = sum(f grad), B = sum(f grad xhat), D = sum(f grad addend) per channel:

    d offset = A          d scale = weight B + bias A + D          d bias = scale A          d weight = scale B
    d x = scale weight rstd (f grad - A / count - xhat B / count)  d addend = f scale grad   d skip = grad
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from transxnet.kernels.activation import BLOCK, batch_statistics, cut
from transxnet.kernels.statistics import BLOCK_C, BLOCK_S, Pieces

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
    """The formula above in plain PyTorch."""
    branch = norm(x) if addend is None else norm(x) + addend
    branch = branch * scale.view(1, -1, 1, 1) + offset.view(1, -1, 1, 1)
    return skip + (branch if factor is None else branch * factor)


@triton.jit
def _residual_fwd_kernel(
    skip_ptr, x_ptr, addend_ptr, out_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, scale_ptr, offset_ptr, factor_ptr,
    total, C: tl.constexpr, HW: tl.constexpr, HAS_FACTOR: tl.constexpr, HAS_ADDEND: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
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
    # Program (c, split): A, B and D over `samples` samples into partial[split, 0:3, c].
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
def _residual_end_kernel(
    partial_ptr, weight_ptr, bias_ptr, scale_ptr, found_ptr, C, splits, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # Program (block of channels): A, B and the gradients of bias, weight and scale, as found[0:5, c].
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = c < C
    a = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    b = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    d = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    for start in range(0, splits, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        inside = (split < splits)[:, None] & mask[None, :]
        here = partial_ptr + (split[:, None] * 3) * C + c[None, :]
        a += tl.load(here, mask=inside, other=0.0)
        b += tl.load(here + C, mask=inside, other=0.0)
        d += tl.load(here + 2 * C, mask=inside, other=0.0)
    one, two = tl.sum(a, 0), tl.sum(b, 0)
    scale = tl.load(scale_ptr + c, mask=mask, other=0.0)
    weight = tl.load(weight_ptr + c, mask=mask, other=0.0)
    tl.store(found_ptr + c, one, mask=mask)
    tl.store(found_ptr + C + c, two, mask=mask)
    tl.store(found_ptr + 2 * C + c, scale * one, mask=mask)
    tl.store(found_ptr + 3 * C + c, scale * two, mask=mask)
    dscale = weight * two + tl.load(bias_ptr + c, mask=mask, other=0.0) * one + tl.sum(d, 0)
    tl.store(found_ptr + 4 * C + c, dscale, mask=mask)


@triton.jit
def _residual_bwd_kernel(
    grad_ptr, x_ptr, factor_ptr, dx_ptr, daddend_ptr, mean_ptr, rstd_ptr, weight_ptr, scale_ptr, sums_ptr,
    inverse_count, total, C: tl.constexpr, HW: tl.constexpr, HAS_FACTOR: tl.constexpr, HAS_ADDEND: tl.constexpr,
    BATCH: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
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
    if BATCH:
        xhat = (tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32) - tl.load(mean_ptr + c)) * rstd
        grad -= (tl.load(sums_ptr + c) + xhat * tl.load(sums_ptr + C + c)) * inverse_count
    dx = grad * (scale * tl.load(weight_ptr + c) * rstd)
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)


class _ScaledResidualFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, skip: Tensor, x: Tensor, addend: Tensor | None, factor: Tensor | None,
        weight: Tensor, bias: Tensor, scale: Tensor, offset: Tensor, norm: nn.BatchNorm2d, pieces: Pieces | None,
    ) -> Tensor:  # fmt: skip
        stats = batch_statistics(x, norm, pieces, apply_gelu=False)
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
        splits, samples, block_n, block_p = cut(n, c, hw)
        partial = torch.empty((splits, 3, c), dtype=torch.float32, device=x.device)
        options = {"HAS_FACTOR": factor is not None, "HAS_ADDEND": addend is not None}
        given_addend, given_factor = x if addend is None else addend, x if factor is None else factor
        _residual_sums_kernel[(c, splits)](
            grad, x, given_addend, given_factor, stats.mean, stats.rstd, partial, n, c, hw, samples,
            **options, BLOCK_N=block_n, BLOCK_P=block_p,
        )  # fmt: skip
        found = torch.empty((5, c), dtype=torch.float32, device=x.device)
        _residual_end_kernel[(triton.cdiv(c, BLOCK_C),)](
            partial, weight, bias, scale, found, c, splits, BLOCK_S=BLOCK_S, BLOCK_C=BLOCK_C
        )
        shared, inverse_count = stats.shared(found[:2])
        dx = torch.empty_like(x)
        daddend = None if addend is None else torch.empty_like(addend)
        _residual_bwd_kernel[(triton.cdiv(total, BLOCK),)](
            grad, x, given_factor, dx, dx if daddend is None else daddend, stats.mean, stats.rstd, weight,
            scale, shared, inverse_count, total, C=c, HW=hw, **options, BATCH=stats.of_batch,
            WIDE=total >= 2**31 - BLOCK, BLOCK=BLOCK,
        )  # fmt: skip
        doffset, _, dbias, dweight, dscale = found
        return grad, dx, daddend, None, dweight, dbias, dscale.view_as(scale), doffset, None, None


def scaled_residual(
    skip: Tensor,
    x: Tensor,
    norm: nn.BatchNorm2d,
    scale: Tensor,
    offset: Tensor,
    factor: Tensor | None,
    addend: Tensor | None,
    pieces: Pieces | None = None,
) -> Tensor:
    """`skip + factor * (scale * (norm(x) + addend) + offset)`.

    `skip`, `x` and `addend` are `[N, C, H, W]` in fp32, bf16 or fp16; `scale` has C elements in any shape, `offset` is
    `[C]`, `factor` `[N, 1, 1, 1]`; parameters and statistics are fp32. `pieces` are
    those of `x`, where its maker took them.

    Raises:
        ValueError: training on a single value per channel.
    """
    return _ScaledResidualFunction.apply(
        skip.contiguous(), x.contiguous(), None if addend is None else addend.contiguous(), factor,
        norm.weight, norm.bias, scale, offset, norm, pieces,
    )  # fmt: skip
