# ruff: noqa: ANN001, ANN201, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""GELU inside kernels, the gradient through GELU and BatchNorm, and batch statistics that no other kernel took."""

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from transxnet.kernels.common.statistics import (
    PartialStats,
    Statistics,
    check_values_per_channel,
    merge,
    running_statistics,
)

__all__ = ["BLOCK", "batch_statistics", "gelu", "gelu_with_gradient", "norm_gradient", "split_reduction"]

BLOCK = 1024
# A reduction is split into at least this many programs: a few for each multiprocessor of the largest GPU.
PROGRAMS = 528


@triton.jit
def _upper_tail(x, EXACT: tl.constexpr):
    # Probability that a standard normal variable exceeds |x|, fp32, as 2 to the power of a polynomial: a third of the
    # instructions of erf. The leading coefficients are negative, so the result goes to 0 for large |x|.
    a = tl.abs(x)
    if EXACT:
        # A weighted least-squares fit: the maximum error is 6e-8 for GELU and 8e-8 for the probability.
        power = -1.9919751e-06
        power = power * a + 2.9273055e-05
        power = power * a - 1.3809411e-04
        power = power * a - 2.5341942e-04
        power = power * a + 7.2163618e-03
        power = power * a - 5.2603025e-02
        power = power * a - 4.5917222e-01
        power = power * a - 1.1511097
        power = power * a - 0.9999999
    else:
        # A minimax fit: the maximum relative error up to |x| = 4 is 1.2e-4, a quarter of fp16's rounding error.
        power = -2.9051261e-04
        power = power * a + 5.5274713e-03
        power = power * a - 4.7199649e-02
        power = power * a - 4.6556576e-01
        power = power * a - 1.1484850
        power = power * a - 1.0001723
    return tl.exp2(power)


@triton.jit
def gelu(x, dtype: tl.constexpr):
    """Return GELU of fp32 `x` with an error of 6e-8, or for a 16-bit storage type `dtype` of 1.2e-4 of the value."""
    return tl.maximum(x, 0.0) - tl.abs(x) * _upper_tail(x, dtype == tl.float32)


@triton.jit
def gelu_with_gradient(x, dtype: tl.constexpr):
    """Return GELU of fp32 `x`, computed as in `gelu`, and its derivative."""
    tail = _upper_tail(x, dtype == tl.float32)
    value = tl.maximum(x, 0.0) - tl.abs(x) * tail
    return value, tl.where(x > 0.0, 1.0 - tail, tail) + x * 0.3989422804014327 * tl.exp2(-0.7213475204444817 * x * x)


@triton.jit
def norm_gradient(
    x, grad, c, in_range, mean_ptr, rstd_ptr, weight_ptr, sums_ptr, inverse_count, C, BATCH_STATS: tl.constexpr,
):  # fmt: skip
    """Return the fp32 gradient of `x`, given the fp32 gradient of `norm(gelu(x))`; both are [channels, pixels].

    `x` is in the storage type, because GELU's precision depends on it.
    """
    rstd = tl.load(rstd_ptr + c, mask=in_range, other=0.0)
    scale = rstd * tl.load(weight_ptr + c, mask=in_range, other=0.0)
    value, slope = gelu_with_gradient(x.to(tl.float32), x.dtype)
    if BATCH_STATS:
        mean_grad_xhat = tl.load(sums_ptr + C + c, mask=in_range, other=0.0) * inverse_count * rstd
        mean_grad = tl.load(sums_ptr + c, mask=in_range, other=0.0) * inverse_count
        mean_grad -= tl.load(mean_ptr + c, mask=in_range, other=0.0) * mean_grad_xhat
        grad -= mean_grad[:, None] + value * mean_grad_xhat[:, None]
    return slope * (grad * scale[:, None])


@triton.jit
def _partial_stats_kernel(
    x_ptr, partial_ptr, N, C, HW, samples, GELU: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (channel c, split): sum and sum of squared deviations over `samples` samples of a channel, to
    # partial[split, 0:2, c].
    c = tl.program_id(0)
    split = tl.program_id(1)
    end = tl.minimum((split + 1) * samples, N)
    # Subtract one of the values first, so that a large mean does not cancel in the squares.
    shift = tl.load(x_ptr + ((split * samples).to(tl.int64) * C + c) * HW).to(tl.float32)
    if GELU:
        shift = gelu(shift, x_ptr.dtype.element_ty)
    first = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    second = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
    for n in range(split * samples, end, BLOCK_N):
        rows = n + tl.arange(0, BLOCK_N)
        base = (rows.to(tl.int64) * C + c) * HW
        for p in range(0, HW, BLOCK_P):
            pixels = p + tl.arange(0, BLOCK_P)
            mask = (rows < end)[:, None] & (pixels < HW)[None, :]
            v = tl.load(x_ptr + base[:, None] + pixels[None, :], mask=mask, other=0.0).to(tl.float32)
            if GELU:
                v = gelu(v, x_ptr.dtype.element_ty)
            v = tl.where(mask, v - shift, 0.0)
            first += v
            second += v * v
    total = tl.sum(tl.sum(first, 1), 0)
    count = ((end - split * samples) * HW).to(tl.float32)
    squares = tl.maximum(tl.sum(tl.sum(second, 1), 0) - total * total / count, 0.0)
    tl.store(partial_ptr + (split * 2) * C + c, total + shift * count)
    tl.store(partial_ptr + (split * 2 + 1) * C + c, squares)


def split_reduction(n: int, c: int, hw: int) -> tuple[int, int, int, int]:
    """Return (splits, samples per split, BLOCK_N, BLOCK_P) for a reduction of `[N, C, H W]` to `[C]`."""
    block_p = min(triton.next_power_of_2(hw), BLOCK)
    block_n = max(1, min(triton.next_power_of_2(n), BLOCK // block_p))
    samples = triton.cdiv(triton.cdiv(n, max(1, triton.cdiv(PROGRAMS, c))), block_n) * block_n
    return triton.cdiv(n, samples), samples, block_n, block_p


def batch_statistics(
    x: Tensor, norm: nn.BatchNorm2d | nn.SyncBatchNorm, partial_stats: PartialStats | None = None, *, apply_gelu: bool
) -> Statistics:
    """Return the statistics with which `norm` normalises `x`, or `gelu(x)` if `apply_gelu`.

    In training they are the batch's, and the running statistics are updated as by `nn.BatchNorm2d`; in evaluation they
    are the running statistics. `x` `[N, C, H, W]` is read only if the kernel that wrote it did not pass
    `partial_stats`.

    Raises:
        ValueError: a batch in training has a single value per channel.
    """
    if not norm.training:
        return running_statistics(norm)
    check_values_per_channel(x, norm)
    if partial_stats is None:
        n, c, hw = x.shape[0], x.shape[1], x.shape[2] * x.shape[3]
        splits, samples, block_n, block_p = split_reduction(n, c, hw)
        partial = torch.empty((splits, 2, c), dtype=torch.float32, device=x.device)
        _partial_stats_kernel[(c, splits)](
            x, partial, n, c, hw, samples, GELU=apply_gelu, BLOCK_N=block_n, BLOCK_P=block_p
        )
        partial_stats = PartialStats(partial, samples * hw, n * hw, n * hw)
    return merge(partial_stats, norm)
