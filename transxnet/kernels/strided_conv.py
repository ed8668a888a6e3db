# ruff: noqa: ANN001, ANN201, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
"""Strided depthwise convolution, from `[N, C, H, W]` to a small map `[N, C, h, w]` of L = h w positions, and back.

PyTorch's gradient of it goes through all K * K taps at every pixel (121 in stage 1), of which at most ceil(K / S) ** 2
meet it; here a pixel looks at those alone. The map is small, so its values are summed directly, a few samples of a
channel a program.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["Map", "add_piece", "place_map", "reduce_map", "spread_map"]

# Values of a map that a program works on at a time, and pixels. A warp alone adds up a tap's gradient fastest.
TILE, PIXELS = 128, 1024


@triton.jit
def place_map(group, start, N, C, c, L: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr):
    """Of a tile of the map: its positions, offsets of its samples' planes, and which of its values are there."""
    n = group * BLOCK_N + tl.arange(0, BLOCK_N)
    p = start + tl.arange(0, BLOCK_P)
    return p, (n.to(tl.int64) * C + c)[:, None], (n < N)[:, None] & (p < L)[None, :]


@triton.jit
def add_piece(count, total, squares, values, inside):
    """Number, sum and squares about the mean of what came before and of `values`."""
    more = tl.sum(tl.sum(inside.to(tl.float32), 1), 0)
    sum_of = tl.sum(tl.sum(tl.where(inside, values, 0.0), 1), 0)
    away = tl.where(inside, values - sum_of / more, 0.0)
    between = total / tl.maximum(count, 1.0) - sum_of / more
    squares += tl.sum(tl.sum(away * away, 1), 0) + between * between * count * more / (count + more)
    return count + more, total + sum_of, squares


@triton.jit
def _reduce_kernel(
    x_ptr, taps_ptr, reduced_ptr, partial_ptr, N, C, H: tl.constexpr, W: tl.constexpr, L: tl.constexpr,
    KEYS_W: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (group of samples, channel): r, and its piece for norm1.
    group, c = tl.program_id(0), tl.program_id(1)
    count = tl.full([], 0.0, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    squares = tl.full([], 0.0, tl.float32)
    for start in range(0, L, BLOCK_P):
        p, plane, inside = place_map(group, start, N, C, c, L, BLOCK_N, BLOCK_P)
        top, left = p // KEYS_W * STRIDE - K // 2, p % KEYS_W * STRIDE - K // 2
        acc = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
        for tap in range(K * K):
            row, column = top + tap // K, left + tap % K
            on_map = inside & ((row >= 0) & (row < H) & (column >= 0) & (column < W))[None, :]
            x = tl.load(x_ptr + plane * (H * W) + (row * W + column)[None, :], mask=on_map, other=0.0)
            acc += x.to(tl.float32) * tl.load(taps_ptr + c * (K * K) + tap).to(tl.float32)
        tl.store(reduced_ptr + plane * L + p[None, :], acc.to(reduced_ptr.dtype.element_ty), mask=inside)
        count, total, squares = add_piece(count, total, squares, acc, inside)
    tl.store(partial_ptr + group * 2 * C + c, total)
    tl.store(partial_ptr + group * 2 * C + C + c, squares)


@triton.jit
def _spread_kernel(
    dreduced_ptr, taps_ptr, around_ptr, dx_ptr, C, H: tl.constexpr, W: tl.constexpr, L: tl.constexpr,
    KEYS_W: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # Program (plane, block of pixels): dx, from the windows that a pixel is in and from what comes round the fork.
    plane = tl.program_id(0).to(tl.int64)
    c = tl.program_id(0) % C
    pixels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pixels < H * W
    row, column = pixels // W + K // 2, pixels % W + K // 2
    dx = tl.load(around_ptr + plane * (H * W) + pixels, mask=inside, other=0.0).to(tl.float32)
    for up in tl.static_range((K + STRIDE - 1) // STRIDE):
        for back in tl.static_range((K + STRIDE - 1) // STRIDE):
            i, j = row // STRIDE - up, column // STRIDE - back
            a, b = row - i * STRIDE, column - j * STRIDE
            there = inside & (i >= 0) & (i < L // KEYS_W) & (j >= 0) & (j < KEYS_W) & (a < K) & (b < K)
            dr = tl.load(dreduced_ptr + plane * L + i * KEYS_W + j, mask=there, other=0.0).to(tl.float32)
            dx += dr * tl.load(taps_ptr + c * (K * K) + a * K + b, mask=there, other=0.0).to(tl.float32)
    tl.store(dx_ptr + plane * (H * W) + pixels, dx.to(dx_ptr.dtype.element_ty), mask=inside)


class Map(NamedTuple):
    """Sizes of a reduction, and the tiles that programs work on."""

    n: int
    c: int
    height: int
    width: int
    kernel: int
    stride: int

    def keys(self) -> tuple[int, int]:
        """Height and width of the map."""
        around = self.kernel // 2 * 2 - self.kernel
        return (self.height + around) // self.stride + 1, (self.width + around) // self.stride + 1

    def positions(self) -> int:
        """Of the map."""
        height, width = self.keys()
        return height * width

    def groups(self) -> int:
        """Of samples: a program works on one of them, and one channel."""
        return triton.cdiv(self.n, self.tiles()["BLOCK_N"])

    def tiles(self) -> dict[str, int]:
        """Number of positions, samples and positions of a tile, and warps of a program on it."""
        positions = self.positions()
        block_p = min(TILE, triton.next_power_of_2(positions))
        return {"L": positions, "BLOCK_N": TILE // block_p, "BLOCK_P": block_p, "num_warps": 1}

    def sides(self) -> dict[str, int]:
        """Of images, map and window."""
        height, width = self.height, self.width
        return {"H": height, "W": width, "KEYS_W": self.keys()[1], "K": self.kernel, "STRIDE": self.stride}


def reduce_map(x: Tensor, taps: Tensor, sizes: Map) -> tuple[Tensor, Tensor]:
    """`x` convolved with `taps` `[C, 1, K, K]`, padded by K // 2, and its pieces `[groups, 2, C]` for a norm."""
    n, c = x.shape[:2]
    reduced = torch.empty((n, c, *sizes.keys()), dtype=x.dtype, device=x.device)
    partial = torch.empty((sizes.groups(), 2, c), dtype=torch.float32, device=x.device)
    _reduce_kernel[(sizes.groups(), c)](x, taps, reduced, partial, n, c, **sizes.sides(), **sizes.tiles())
    return reduced, partial


def spread_map(dreduced: Tensor, taps: Tensor, around: Tensor, sizes: Map) -> Tensor:
    """The gradient of `x` from that of the map, with `around` `[N, C, H, W]` added."""
    n, c, height, width = around.shape
    dx = torch.empty_like(around)
    block = min(PIXELS, triton.next_power_of_2(height * width))
    _spread_kernel[(n * c, triton.cdiv(height * width, block))](
        dreduced, taps, around, dx, c, **sizes.sides(), L=sizes.positions(), BLOCK=block
    )
    return dx
