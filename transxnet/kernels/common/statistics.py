# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""BatchNorm statistics from partial sums that other kernels take, over all ranks for a SyncBatchNorm.

Partial statistics describe a chunk of a channel's values by its sum and the sum of squared deviations from the chunk's
own mean. Chunks are merged without cancellation, however large the mean is (Chan et al.):

    mean = sum of sums / count      variance = sum of (squares + size * (chunk's mean - mean) ** 2) / count

Under SyncBatchNorm each rank merges its chunks into one, and the ranks' chunks are gathered and merged in the same way.
The two sums in the norm's input gradient are all-reduced before use; the gradients of its weight and bias are this
rank's own.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch import distributed as dist

__all__ = [
    "BLOCK_C",
    "BLOCK_S",
    "PartialStats",
    "Statistics",
    "check_values_per_channel",
    "merge",
    "running_statistics",
]

BLOCK_S, BLOCK_C = 32, 32


class PartialStats(NamedTuple):
    """Partial statistics of every channel.

    The values of a channel come in stretches of `length`; each stretch is cut into chunks of `size`, of which the last
    may be shorter.
    """

    partial: Tensor
    """`[rows, 2, C]`, fp32: sum, and sum of squared deviations from the chunk's mean."""
    size: int
    length: int
    values: int
    """Number of values of a channel."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation with which a norm normalises."""

    mean: Tensor
    """`[C]`, fp32."""
    rstd: Tensor
    """`[C]`, fp32: 1 / standard deviation."""
    count: int = 0
    """Number of values of a channel on this rank; 0 for running statistics."""
    group: "dist.ProcessGroup | None" = None
    total: Tensor | None = None
    """`[1]`, fp32: number of values of a channel on all ranks of `group`."""

    @property
    def from_batch(self) -> bool:
        """Whether the statistics depend on the batch, so that the input gradient has a term for them."""
        return self.count > 0

    def sum_over_ranks(self, sums: Tensor) -> tuple[Tensor, float]:
        """Return `sums` as sums over all values the statistics were taken of, and the factor that makes them means.

        Under SyncBatchNorm the sums are all-reduced and already divided, so the factor is 1.
        """
        if self.total is None:
            return sums, 1.0 / max(self.count, 1)
        global_sums = sums.clone()
        dist.all_reduce(global_sums, group=self.group)
        return global_sums.div_(self.total), 1.0


@triton.jit
def _partial_sizes(row, size, length, rows_per_length):
    return tl.minimum(length - (row % rows_per_length) * size, size).to(tl.float32)


@triton.jit
def _merge_kernel(
    partial_ptr, mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, batches_ptr, total_ptr, C, rows, size, length,
    momentum, eps, TO_PARTIAL: tl.constexpr, FROM_RANKS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # Program (block of channels): merge the rows of partial statistics and update the running statistics. TO_PARTIAL:
    # write one row [3, C] at mean_ptr instead: sum, squares, count. FROM_RANKS: the rows are such rows of the ranks,
    # and their total count is stored.
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = channels < C
    stride = 3 * C if FROM_RANKS else 2 * C
    rows_per_length = tl.cdiv(length, size)
    total = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    counts = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    for start in range(0, rows, BLOCK_S):
        row = start + tl.arange(0, BLOCK_S)
        inside = (row < rows)[:, None] & mask[None, :]
        pointers = partial_ptr + row[:, None] * stride + channels[None, :]
        total += tl.load(pointers, mask=inside, other=0.0)
        if FROM_RANKS:
            counts += tl.load(pointers + 2 * C, mask=inside, other=0.0)
        else:
            counts += tl.where(inside, _partial_sizes(row, size, length, rows_per_length)[:, None], 0.0)
    count = tl.sum(counts, 0)
    mean = tl.sum(total, 0) / tl.where(mask, count, 1.0)
    squares = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    for start in range(0, rows, BLOCK_S):
        row = start + tl.arange(0, BLOCK_S)
        inside = (row < rows)[:, None] & mask[None, :]
        pointers = partial_ptr + row[:, None] * stride + channels[None, :]
        if FROM_RANKS:
            sizes = tl.load(pointers + 2 * C, mask=inside, other=1.0)
        else:
            sizes = (
                tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
                + _partial_sizes(row, size, length, rows_per_length)[:, None]
            )
        deviation = tl.load(pointers, mask=inside, other=0.0) / sizes - mean[None, :]
        squares += tl.where(inside, tl.load(pointers + C, mask=inside, other=0.0) + sizes * deviation * deviation, 0.0)
    if TO_PARTIAL:
        tl.store(mean_ptr + channels, mean * count, mask=mask)
        tl.store(mean_ptr + C + channels, tl.sum(squares, 0), mask=mask)
        tl.store(mean_ptr + 2 * C + channels, count, mask=mask)
    else:
        var = tl.sum(squares, 0) / tl.where(mask, count, 1.0)
        tl.store(mean_ptr + channels, mean, mask=mask)
        tl.store(rstd_ptr + channels, 1.0 / tl.sqrt(var + eps), mask=mask)
        old_mean = tl.load(running_mean_ptr + channels, mask=mask)
        old_var = tl.load(running_var_ptr + channels, mask=mask)
        unbiased = var * (count / tl.maximum(count + -1.0, 1.0))
        tl.store(running_mean_ptr + channels, old_mean + momentum * (mean - old_mean), mask=mask)
        tl.store(running_var_ptr + channels, old_var + momentum * (unbiased - old_var), mask=mask)
        if tl.program_id(0) == 0:
            tl.store(batches_ptr, tl.load(batches_ptr) + 1)
            if FROM_RANKS:
                tl.store(total_ptr, tl.max(count, 0))


def merge(partial_stats: PartialStats, norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> Statistics:
    """Return the batch statistics, over all ranks for a SyncBatchNorm, and update the running statistics of `norm`."""
    partial, c = partial_stats.partial, partial_stats.partial.shape[2]
    group = _group(norm)
    if group is not None:
        row = torch.empty((3, c), dtype=torch.float32, device=partial.device)
        _launch(partial, row, row, norm, row, partial_stats.size, partial_stats.length, to_partial=True)
        rows = torch.empty((dist.get_world_size(group), 3, c), dtype=torch.float32, device=partial.device)
        dist.all_gather_into_tensor(rows.view(-1, c), row, group=group)
        total = torch.empty(1, dtype=torch.float32, device=partial.device)
    else:
        rows, total = partial, None
    mean, rstd = torch.empty((2, c), dtype=torch.float32, device=partial.device)
    _launch(rows, mean, rstd, norm, total, partial_stats.size, partial_stats.length)
    return Statistics(mean, rstd, partial_stats.values, group, total)


def _launch(
    partial: Tensor, mean: Tensor, rstd: Tensor, norm: nn.BatchNorm2d | nn.SyncBatchNorm, total: Tensor | None,
    size: int, length: int, *, to_partial: bool = False,
) -> None:  # fmt: skip
    rows, c = partial.shape[0], partial.shape[2]
    _merge_kernel[(triton.cdiv(c, BLOCK_C),)](
        partial, mean, rstd, norm.running_mean, norm.running_var, norm.num_batches_tracked,
        mean if total is None else total, c, rows, size, length, norm.momentum, norm.eps,
        TO_PARTIAL=to_partial, FROM_RANKS=total is not None and not to_partial, BLOCK_S=BLOCK_S, BLOCK_C=BLOCK_C,
    )  # fmt: skip


def _group(norm: nn.Module) -> "dist.ProcessGroup | None":
    """Return the process group that shares the statistics of `norm` in training, or None for a single process."""
    if not isinstance(norm, nn.SyncBatchNorm) or not dist.is_available() or not dist.is_initialized():
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def check_values_per_channel(x: Tensor, norm: nn.Module) -> None:
    """Raise ValueError if a batch in training has a single value per channel, which has no variance."""
    if norm.training and x.numel() == x.shape[1] and _group(norm) is None:
        raise ValueError(f"BatchNorm needs more than one value per channel in training, got shape {tuple(x.shape)}")


def running_statistics(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> Statistics:
    """Return the running statistics, with which `norm` normalises in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return Statistics(norm.running_mean.float(), torch.rsqrt(norm.running_var.float() + norm.eps))
