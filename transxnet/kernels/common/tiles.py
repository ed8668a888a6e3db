# ruff: noqa: ANN001, ANN201 - a kernel's arguments are pointers and scalars that the launch types.
"""Tiles of channels by pixels of a map `[N, C, H W]`, with the pixels of all samples numbered through."""

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["block_size", "first_channel_offsets", "locate_block", "sample_gap"]


@triton.jit
def locate_block(channels, BLOCK_C: tl.constexpr):
    """Return the program's block of channels and its block of pixels.

    Programs of the same pixels have consecutive numbers, so that what they read stays in the cache. The grid has one
    axis, because the others end at 65,535.
    """
    blocks = tl.cdiv(channels, BLOCK_C)
    return tl.program_id(0) % blocks, tl.program_id(0) // blocks


@triton.jit
def first_channel_offsets(pixels, C, HW: tl.constexpr):
    """Return the offsets of channel 0 at `pixels`, int64."""
    return (pixels // HW).to(tl.int64) * C * HW + pixels % HW


def block_size(size: int, limit: int | None = None) -> int:
    """Return the side of a tile for `size`: a power of two, at least 16 (for tensor cores) and at most `limit`."""
    side = max(16, triton.next_power_of_2(size))
    return side if limit is None else min(side, limit)


def sample_gap(x: Tensor) -> int:
    """Return the number of values between two samples of `x`, a slice along the channels of a contiguous tensor."""
    return x.stride(0) - x.shape[1:].numel()
