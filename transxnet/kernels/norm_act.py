# ruff: noqa: ANN001, ANN201, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""GELU followed by BatchNorm, and BatchNorm's statistics, over `[N, C, H, W]`.

    y = (v - mean) * rstd * weight + bias,   v = gelu(x) or x,   mean and rstd per channel over N, H, W

GELU stands before the norm here, so no library fuses the two. Forward: one read for the statistics, one read and one
write to apply. Backward: one pass for the two sums, one to apply. Only `x` is saved.

Statistics are sums of `v - pilot` and of its square, in fp32, where `pilot` is the channel's first value: without that
shift the variance of a channel whose mean is large would be lost to cancellation.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Statistics",
    "batch_statistics",
    "gelu",
    "gelu_batch_norm",
    "gelu_batch_norm_reference",
    "gelu_gradient",
    "store_statistics",
]

BLOCK = 1024
# Programs a reduction is cut into at least: a few for each multiprocessor of the largest GPU.
PROGRAMS = 528


def gelu_batch_norm_reference(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """`norm(gelu(x))` in plain PyTorch."""
    return norm(F.gelu(x))


@triton.jit
def gelu(x):
    """Exact GELU of fp32 `x`."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_gradient(x):
    """Derivative of the exact GELU at fp32 `x`."""
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def _sums_kernel(
    x_ptr, grad_ptr, v_ptr, mean_ptr, rstd_ptr, partial_ptr, N, C, HW, samples,
    GELU: tl.constexpr, BACKWARD: tl.constexpr, STORE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (c, split): two sums over `samples` samples of one channel into partial[split, 0:2, c].
    # Forward: of v - pilot and its square. Backward: of grad and grad * (v - mean) * rstd. STORE keeps v as well.
    c = tl.program_id(0)
    split = tl.program_id(1)
    if BACKWARD:
        shift = tl.load(mean_ptr + c)
        scale = tl.load(rstd_ptr + c)
    else:
        shift = tl.load(x_ptr + c * HW).to(tl.float32)
        scale = 1.0
        if GELU:
            shift = gelu(shift)
    first = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    second = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    end = tl.minimum((split + 1) * samples, N)
    for n in range(split * samples, end, BLOCK_N):
        rows = n + tl.arange(0, BLOCK_N)
        base = (rows.to(tl.int64) * C + c) * HW
        for p in range(0, HW, BLOCK_P):
            pixels = p + tl.arange(0, BLOCK_P)
            mask = (rows < end)[:, None] & (pixels < HW)[None, :]
            offsets = base[:, None] + pixels[None, :]
            v = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
            if GELU:
                v = gelu(v)
            if STORE:
                tl.store(v_ptr + offsets, v.to(v_ptr.dtype.element_ty), mask=mask)
            v = (v - shift) * scale
            if BACKWARD:
                grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
                first += grad
                second += grad * v
            else:
                v = tl.where(mask, v, 0.0)
                first += v
                second += v * v
    tl.store(partial_ptr + (split * 2) * C + c, tl.sum(tl.sum(first, 1), 0))
    tl.store(partial_ptr + (split * 2 + 1) * C + c, tl.sum(tl.sum(second, 1), 0))


@triton.jit
def _finish_kernel(
    x_ptr, partial_ptr, mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, batches_ptr, C, HW, splits,
    count, momentum, eps, GELU: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # Partial sums to mean and rstd of each channel; running statistics updated in place.
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = channels < C
    pilot = tl.load(x_ptr + channels * HW, mask=mask, other=0.0).to(tl.float32)
    if GELU:
        pilot = gelu(pilot)
    first = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    second = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    for start in range(0, splits, BLOCK_S):
        rows = start + tl.arange(0, BLOCK_S)
        inside = (rows < splits)[:, None] & mask[None, :]
        here = partial_ptr + rows[:, None] * (2 * C) + channels[None, :]
        first += tl.load(here, mask=inside, other=0.0)
        second += tl.load(here + C, mask=inside, other=0.0)
    offset = tl.sum(first, 0) / count
    var = tl.maximum(tl.sum(second, 0) / count - offset * offset, 0.0)
    store_statistics(
        pilot + offset, var, mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, batches_ptr, channels, mask,
        count, momentum, eps,
    )  # fmt: skip


@triton.jit
def store_statistics(
    mean, var, mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, batches_ptr, channels, mask, count, momentum, eps,
):  # fmt: skip
    """Store mean and 1 / std of `channels`, and move the running statistics towards them."""
    tl.store(mean_ptr + channels, mean, mask=mask)
    tl.store(rstd_ptr + channels, 1.0 / tl.sqrt(var + eps), mask=mask)
    old_mean = tl.load(running_mean_ptr + channels, mask=mask)
    old_var = tl.load(running_var_ptr + channels, mask=mask)
    unbiased = var * (count / (count - 1.0))
    tl.store(running_mean_ptr + channels, old_mean + momentum * (mean - old_mean), mask=mask)
    tl.store(running_var_ptr + channels, old_var + momentum * (unbiased - old_var), mask=mask)
    if tl.program_id(0) == 0:
        tl.store(batches_ptr, tl.load(batches_ptr) + 1)


@triton.jit
def _apply_kernel(
    x_ptr, y_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, total,
    C: tl.constexpr, HW: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    offsets = pid * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < total
    c = (offsets // HW) % C
    v = gelu(tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32))
    mean, rstd = tl.load(mean_ptr + c), tl.load(rstd_ptr + c)
    y = (v - mean) * (rstd * tl.load(weight_ptr + c)) + tl.load(bias_ptr + c)
    tl.store(y_ptr + offsets, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _apply_bwd_kernel(
    x_ptr, grad_ptr, dx_ptr, mean_ptr, rstd_ptr, weight_ptr, sums_ptr, inverse_count, total,
    C: tl.constexpr, HW: tl.constexpr, BATCH: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # dx = gelu'(x) * weight * rstd * (grad - mean(grad) - vhat * mean(grad * vhat)); sums[0], sums[1] are the two sums.
    pid = tl.program_id(0)
    if WIDE:
        pid = pid.to(tl.int64)
    offsets = pid * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < total
    c = (offsets // HW) % C
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    rstd = tl.load(rstd_ptr + c)
    if BATCH:
        vhat = (gelu(x) - tl.load(mean_ptr + c)) * rstd
        grad -= (tl.load(sums_ptr + c) + vhat * tl.load(sums_ptr + C + c)) * inverse_count
    dx = gelu_gradient(x) * (tl.load(weight_ptr + c) * rstd) * grad
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)


class Statistics(NamedTuple):
    """Per channel, fp32 `[C]` each."""

    mean: Tensor
    rstd: Tensor


def _cut(n: int, c: int, hw: int) -> tuple[int, int, int, int]:
    """(Splits, samples a split, BLOCK_N, BLOCK_P) of a reduction over all but the channels."""
    block_p = min(triton.next_power_of_2(hw), BLOCK)
    block_n = max(1, min(triton.next_power_of_2(n), BLOCK // block_p))
    samples = triton.cdiv(triton.cdiv(n, max(1, triton.cdiv(PROGRAMS, c))), block_n) * block_n
    return triton.cdiv(n, samples), samples, block_n, block_p


def channel_sums(
    x: Tensor,
    *,
    apply_gelu: bool,
    grad: Tensor | None = None,
    stats: Statistics | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """Partial sums `[splits, 2, C]`, fp32: see `_sums_kernel`. `gelu(x)` is written to `keep` where given."""
    n, c, hw = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
    splits, samples, block_n, block_p = _cut(n, c, hw)
    partial = torch.empty((splits, 2, c), dtype=torch.float32, device=x.device)
    mean, rstd = stats if stats is not None else (x, x)
    _sums_kernel[(c, splits)](
        x, x if grad is None else grad, x if keep is None else keep, mean, rstd, partial, n, c, hw, samples,
        GELU=apply_gelu, BACKWARD=grad is not None, STORE=keep is not None, BLOCK_N=block_n, BLOCK_P=block_p,
    )  # fmt: skip
    return partial


def batch_statistics(x: Tensor, norm: nn.BatchNorm2d, *, apply_gelu: bool) -> Statistics:
    """Mean and 1 / std that `norm` normalises `gelu(x)` or `x` with: of this batch in training, else the running ones.

    In training the running statistics are updated as `nn.BatchNorm2d` does it.

    Raises:
        ValueError: training on a single value per channel.
    """
    if not norm.training:
        return running_statistics(norm)
    check_batch(x)
    partial = channel_sums(x, apply_gelu=apply_gelu)
    return finish_statistics(partial, norm, x, apply_gelu=apply_gelu)


def check_batch(x: Tensor) -> None:
    """Raise ValueError where a batch has a single value per channel, which has no variance."""
    if x.numel() == x.shape[1]:
        raise ValueError(f"BatchNorm needs more than one value per channel in training, got shape {tuple(x.shape)}")


def running_statistics(norm: nn.BatchNorm2d) -> Statistics:
    """What `norm` normalises with in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return Statistics(norm.running_mean.float(), torch.rsqrt(norm.running_var.float() + norm.eps))


def finish_statistics(partial: Tensor, norm: nn.BatchNorm2d, x: Tensor, *, apply_gelu: bool) -> Statistics:
    """Statistics from `channel_sums` of `x`; the running ones of `norm` are updated."""
    c = partial.shape[2]
    stats = Statistics(*torch.empty((2, c), dtype=torch.float32, device=partial.device))
    block = 32
    _finish_kernel[(triton.cdiv(c, block),)](
        x, partial, stats.mean, stats.rstd, norm.running_mean, norm.running_var, norm.num_batches_tracked,
        c, x.shape[2] * x.shape[3], partial.shape[0], float(x.numel() // c), norm.momentum, norm.eps,
        GELU=apply_gelu, BLOCK_S=32, BLOCK_C=block,
    )  # fmt: skip
    return stats


def apply_gelu_norm(x: Tensor, stats: Statistics, weight: Tensor, bias: Tensor) -> Tensor:
    """`(gelu(x) - mean) * rstd * weight + bias`."""
    y = torch.empty_like(x)
    c, hw, total = x.shape[1], x.shape[2] * x.shape[3], x.numel()
    _apply_kernel[(triton.cdiv(total, BLOCK),)](
        x, y, *stats, weight, bias, total, C=c, HW=hw, WIDE=total >= 2**31 - BLOCK, BLOCK=BLOCK
    )
    return y


def gelu_norm_gradient(
    x: Tensor, grad: Tensor, stats: Statistics, weight: Tensor, sums: Tensor, *, batch: bool
) -> Tensor:
    """Gradient of `x`, given that of the output and its two sums `[2, C]`; `batch`: the statistics are this batch's."""
    dx = torch.empty_like(x)
    c, hw, total = x.shape[1], x.shape[2] * x.shape[3], x.numel()
    _apply_bwd_kernel[(triton.cdiv(total, BLOCK),)](
        x, grad, dx, *stats, weight, sums, c / total, total,
        C=c, HW=hw, BATCH=batch, WIDE=total >= 2**31 - BLOCK, BLOCK=BLOCK,
    )  # fmt: skip
    return dx


class _GeluBatchNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        stats = batch_statistics(x, norm, apply_gelu=True)
        ctx.save_for_backward(x, weight, *stats)
        ctx.batch = norm.training
        return apply_gelu_norm(x, stats, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        grad = grad_outputs[0].contiguous()
        stats = Statistics(mean, rstd)
        sums = channel_sums(x, apply_gelu=True, grad=grad, stats=stats).sum(0)
        dx = gelu_norm_gradient(x, grad, stats, weight, sums, batch=ctx.batch)
        return dx, sums[1].to(weight.dtype), sums[0].to(weight.dtype), None


def gelu_batch_norm(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """`norm(gelu(x))` for `x` `[N, C, H, W]` in fp32, bf16 or fp16; parameters and statistics of `norm` in fp32.

    Raises:
        ValueError: training on a single value per channel.
    """
    return _GeluBatchNormFunction.apply(x.contiguous(), norm.weight, norm.bias, norm)
