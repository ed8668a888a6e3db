# ruff: noqa: ANN001, ANN201 - a kernel's arguments are pointers and scalars that the launch types.
"""Blocks of channels by pixels of `[N, C, HW]`, the pixels counted through all samples."""

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["block", "first_channel", "gap", "place_block"]


@triton.jit
def place_block(channels, BLOCK_C: tl.constexpr):
    """The program's block of `channels`, and of pixels.

    Blocks of the same pixels follow one another, so that what they read lies in a cache. The grid has one axis: the
    others end at 65,535.
    """
    blocks = tl.cdiv(channels, BLOCK_C)
    return tl.program_id(0) % blocks, tl.program_id(0) // blocks


@triton.jit
def first_channel(pixels, C, HW: tl.constexpr):
    """Offsets of the first channel at `pixels`, as int64."""
    return (pixels // HW).to(tl.int64) * C * HW + pixels % HW


def block(size: int, limit: int | None = None) -> int:
    """Side of a tile that `size` fits, at most `limit`; 16 at the least, which products on tensor cores need."""
    side = max(16, triton.next_power_of_2(size))
    return side if limit is None else min(side, limit)


def gap(x: Tensor) -> int:
    """Values of other channels between two samples of `x` `[N, C, H, W]`, where it is a part of a contiguous tensor."""
    return x.stride(0) - x.shape[1:].numel()
