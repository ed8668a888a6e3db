# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""BatchNorm's statistics, from sums that other kernels take in passing; over all ranks for a SyncBatchNorm.

A piece is some values of one channel: its sum and the sum of squares about its own mean. Pieces merge to the mean and
the variance of all values without cancellation, whatever the mean is:

    mean = sum of sums / count      variance = sum of (squares + size * (piece's mean - mean) ** 2) / count

Under SyncBatchNorm each rank's pieces become one, the ranks' pieces are gathered and merged the same way. The two sums
of a norm's gradient are added over the ranks before they are used; its weight and bias take this rank's own.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch import distributed as dist

__all__ = ["BLOCK_C", "BLOCK_S", "Pieces", "Statistics", "check_batch", "merge", "running_statistics"]

BLOCK_S, BLOCK_C = 32, 32


class Pieces(NamedTuple):
    """Pieces of every channel: of each `length` values in turn, `size` at a time, the last of them the rest."""

    partial: Tensor
    """`[rows, 2, C]`, fp32: sum, and squares about the piece's mean."""
    size: int
    length: int
    values: int
    """Values of a channel."""


@dataclass(frozen=True)
class Statistics:
    """What a norm normalises with."""

    mean: Tensor
    """`[C]`, fp32."""
    rstd: Tensor
    """`[C]`, fp32: 1 / standard deviation."""
    count: int = 0
    """Values of a channel on this rank; 0 where these are the running statistics."""
    group: "dist.ProcessGroup | None" = None
    total: Tensor | None = None
    """`[1]`, fp32: values of a channel on all ranks of `group`."""

    @property
    def of_batch(self) -> bool:
        """Whether they depend on the batch, and so take part in its gradient."""
        return self.count > 0

    def shared(self, sums: Tensor) -> tuple[Tensor, float]:
        """`sums` over this rank's values, as sums over all that the statistics were taken of, and 1 / their count."""
        if self.total is None:
            return sums, 1.0 / max(self.count, 1)
        everywhere = sums.clone()
        dist.all_reduce(everywhere, group=self.group)
        return everywhere.div_(self.total), 1.0


@triton.jit
def _sizes(row, size, length, pieces):
    return tl.minimum(length - (row % pieces) * size, size).to(tl.float32)


@triton.jit
def _merge_kernel(
    partial_ptr, mean_ptr, rstd_ptr, running_mean_ptr, running_var_ptr, batches_ptr, total_ptr, C, rows, size, length,
    momentum, eps, TO_PIECE: tl.constexpr, OF_RANKS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # Rows of pieces to statistics, running ones moved towards them. TO_PIECE: to one row [3, C] at mean_ptr instead,
    # with its size. OF_RANKS: the rows are such rows, and their total size is stored.
    channels = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = channels < C
    stride = 3 * C if OF_RANKS else 2 * C
    pieces = tl.cdiv(length, size)
    total = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    counts = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    for start in range(0, rows, BLOCK_S):
        row = start + tl.arange(0, BLOCK_S)
        inside = (row < rows)[:, None] & mask[None, :]
        here = partial_ptr + row[:, None] * stride + channels[None, :]
        total += tl.load(here, mask=inside, other=0.0)
        if OF_RANKS:
            counts += tl.load(here + 2 * C, mask=inside, other=0.0)
        else:
            counts += tl.where(inside, _sizes(row, size, length, pieces)[:, None], 0.0)
    count = tl.sum(counts, 0)
    mean = tl.sum(total, 0) / tl.where(mask, count, 1.0)
    squares = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32)
    for start in range(0, rows, BLOCK_S):
        row = start + tl.arange(0, BLOCK_S)
        inside = (row < rows)[:, None] & mask[None, :]
        here = partial_ptr + row[:, None] * stride + channels[None, :]
        if OF_RANKS:
            sizes = tl.load(here + 2 * C, mask=inside, other=1.0)
        else:
            sizes = tl.zeros([BLOCK_S, BLOCK_C], dtype=tl.float32) + _sizes(row, size, length, pieces)[:, None]
        away = tl.load(here, mask=inside, other=0.0) / sizes - mean[None, :]
        squares += tl.where(inside, tl.load(here + C, mask=inside, other=0.0) + sizes * away * away, 0.0)
    if TO_PIECE:
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
            if OF_RANKS:
                tl.store(total_ptr, tl.max(count, 0))


def merge(pieces: Pieces, norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> Statistics:
    """Statistics of the batch, on all ranks where `norm` is a SyncBatchNorm; its running ones are updated."""
    partial, c = pieces.partial, pieces.partial.shape[2]
    group = _group(norm)
    if group is not None:
        row = torch.empty((3, c), dtype=torch.float32, device=partial.device)
        _launch(partial, row, row, norm, row, pieces.size, pieces.length, to_piece=True)
        rows = torch.empty((dist.get_world_size(group), 3, c), dtype=torch.float32, device=partial.device)
        dist.all_gather_into_tensor(rows.view(-1, c), row, group=group)
        total = torch.empty(1, dtype=torch.float32, device=partial.device)
    else:
        rows, total = partial, None
    mean, rstd = torch.empty((2, c), dtype=torch.float32, device=partial.device)
    _launch(rows, mean, rstd, norm, total, pieces.size, pieces.length)
    return Statistics(mean, rstd, pieces.values, group, total)


def _launch(
    partial: Tensor, mean: Tensor, rstd: Tensor, norm: nn.BatchNorm2d | nn.SyncBatchNorm, total: Tensor | None,
    size: int, length: int, *, to_piece: bool = False,
) -> None:  # fmt: skip
    rows, c = partial.shape[0], partial.shape[2]
    _merge_kernel[(triton.cdiv(c, BLOCK_C),)](
        partial, mean, rstd, norm.running_mean, norm.running_var, norm.num_batches_tracked,
        mean if total is None else total, c, rows, size, length, norm.momentum, norm.eps,
        TO_PIECE=to_piece, OF_RANKS=total is not None and not to_piece, BLOCK_S=BLOCK_S, BLOCK_C=BLOCK_C,
    )  # fmt: skip


def _group(norm: nn.Module) -> "dist.ProcessGroup | None":
    """The ranks that share the statistics of `norm` in training, where there is more than one."""
    if not isinstance(norm, nn.SyncBatchNorm) or not dist.is_available() or not dist.is_initialized():
        return None
    group = norm.process_group or dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def check_batch(x: Tensor, norm: nn.Module) -> None:
    """Raise ValueError where a batch in training has a single value per channel, which has no variance."""
    if norm.training and x.numel() == x.shape[1] and _group(norm) is None:
        raise ValueError(f"BatchNorm needs more than one value per channel in training, got shape {tuple(x.shape)}")


def running_statistics(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> Statistics:
    """What `norm` normalises with in evaluation."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return Statistics(norm.running_mean.float(), torch.rsqrt(norm.running_var.float() + norm.eps))
