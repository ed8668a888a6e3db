# ruff: noqa: ANN001, ANN201, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
"""Strided depthwise convolution from `[N, C, H, W]` to a small map `[N, C, h, w]` of L = h w positions, and back.

PyTorch's input gradient visits all K * K taps at every pixel (121 in stage 1), although at most ceil(K / S) ** 2
windows contain it. Here a pixel visits those windows only. A program sums over a few samples of one channel.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["ReductionSizes", "add_to_statistics", "locate_tile", "strided_conv", "strided_conv_input_gradient"]

# Number of values of the small map, and of pixels, that a program works on at a time.
TILE, PIXELS = 128, 1024


@triton.jit
def locate_tile(group, start, N, C, c, L: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr):
    """Return a tile's positions, the offsets of its planes, and the mask of values on the map."""
    n = group * BLOCK_N + tl.arange(0, BLOCK_N)
    p = start + tl.arange(0, BLOCK_P)
    return p, (n.to(tl.int64) * C + c)[:, None], (n < N)[:, None] & (p < L)[None, :]


@triton.jit
def add_to_statistics(count, total, squares, values, inside):
    """Return number, sum and sum of squared deviations after adding `values` to those given."""
    added = tl.sum(tl.sum(inside.to(tl.float32), 1), 0)
    sum_of = tl.sum(tl.sum(tl.where(inside, values, 0.0), 1), 0)
    deviation = tl.where(inside, values - sum_of / added, 0.0)
    between = total / tl.maximum(count, 1.0) - sum_of / added
    squares += tl.sum(tl.sum(deviation * deviation, 1), 0) + between * between * count * added / (count + added)
    return count + added, total + sum_of, squares


@triton.jit
def _strided_conv_kernel(
    x_ptr, taps_ptr, reduced_ptr, partial_ptr, N, C, H: tl.constexpr, W: tl.constexpr, L: tl.constexpr,
    KEYS_W: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (group of samples, channel): r, and its partial statistics for norm1.
    group, c = tl.program_id(0), tl.program_id(1)
    count = tl.full([], 0.0, tl.float32)
    total = tl.full([], 0.0, tl.float32)
    squares = tl.full([], 0.0, tl.float32)
    for start in range(0, L, BLOCK_P):
        p, plane, inside = locate_tile(group, start, N, C, c, L, BLOCK_N, BLOCK_P)
        top, left = p // KEYS_W * STRIDE - K // 2, p % KEYS_W * STRIDE - K // 2
        acc = tl.zeros([BLOCK_N, BLOCK_P], dtype=tl.float32)
        for tap in range(K * K):
            row, column = top + tap // K, left + tap % K
            on_map = inside & ((row >= 0) & (row < H) & (column >= 0) & (column < W))[None, :]
            x = tl.load(x_ptr + plane * (H * W) + (row * W + column)[None, :], mask=on_map, other=0.0)
            acc += x.to(tl.float32) * tl.load(taps_ptr + c * (K * K) + tap).to(tl.float32)
        tl.store(reduced_ptr + plane * L + p[None, :], acc.to(reduced_ptr.dtype.element_ty), mask=inside)
        count, total, squares = add_to_statistics(count, total, squares, acc, inside)
    tl.store(partial_ptr + group * 2 * C + c, total)
    tl.store(partial_ptr + group * 2 * C + C + c, squares)


@triton.jit
def _strided_input_gradient_kernel(
    dreduced_ptr, taps_ptr, skip_grad_ptr, dx_ptr, C, H: tl.constexpr, W: tl.constexpr, L: tl.constexpr,
    KEYS_W: tl.constexpr, K: tl.constexpr, STRIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # Program (plane, block of pixels): dx, summed over the windows that contain a pixel, plus the skip connection's
    # gradient.
    plane = tl.program_id(0).to(tl.int64)
    c = tl.program_id(0) % C
    pixels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pixels < H * W
    row, column = pixels // W + K // 2, pixels % W + K // 2
    dx = tl.load(skip_grad_ptr + plane * (H * W) + pixels, mask=inside, other=0.0).to(tl.float32)
    for up in tl.static_range((K + STRIDE - 1) // STRIDE):
        for back in tl.static_range((K + STRIDE - 1) // STRIDE):
            i, j = row // STRIDE - up, column // STRIDE - back
            a, b = row - i * STRIDE, column - j * STRIDE
            in_window = inside & (i >= 0) & (i < L // KEYS_W) & (j >= 0) & (j < KEYS_W) & (a < K) & (b < K)
            dr = tl.load(dreduced_ptr + plane * L + i * KEYS_W + j, mask=in_window, other=0.0).to(tl.float32)
            dx += dr * tl.load(taps_ptr + c * (K * K) + a * K + b, mask=in_window, other=0.0).to(tl.float32)
    tl.store(dx_ptr + plane * (H * W) + pixels, dx.to(dx_ptr.dtype.element_ty), mask=inside)


class ReductionSizes(NamedTuple):
    """Sizes of a strided convolution, and the tiles of its programs."""

    n: int
    c: int
    height: int
    width: int
    kernel: int
    stride: int

    def key_size(self) -> tuple[int, int]:
        """Return height and width of the small map."""
        padding = self.kernel // 2 * 2 - self.kernel
        return (self.height + padding) // self.stride + 1, (self.width + padding) // self.stride + 1

    def positions(self) -> int:
        """Return the number of positions of the small map."""
        height, width = self.key_size()
        return height * width

    def groups(self) -> int:
        """Return the number of groups of samples; a program works on one group and one channel."""
        return triton.cdiv(self.n, self.tiles()["BLOCK_N"])

    def tiles(self) -> dict[str, int]:
        """Return the number of positions and a program's tile; one warp adds up the gradient of a tap fastest."""
        positions = self.positions()
        block_p = min(TILE, triton.next_power_of_2(positions))
        return {"L": positions, "BLOCK_N": TILE // block_p, "BLOCK_P": block_p, "num_warps": 1}

    def sides(self) -> dict[str, int]:
        """Return the sides of the image, the small map and the window, and the stride."""
        height, width = self.height, self.width
        return {"H": height, "W": width, "KEYS_W": self.key_size()[1], "K": self.kernel, "STRIDE": self.stride}


def strided_conv(x: Tensor, taps: Tensor, sizes: ReductionSizes) -> tuple[Tensor, Tensor]:
    """Return `x` convolved with `taps` `[C, 1, K, K]`, padding K // 2, and its partial statistics `[groups, 2, C]`."""
    n, c = x.shape[:2]
    reduced = torch.empty((n, c, *sizes.key_size()), dtype=x.dtype, device=x.device)
    partial = torch.empty((sizes.groups(), 2, c), dtype=torch.float32, device=x.device)
    _strided_conv_kernel[(sizes.groups(), c)](x, taps, reduced, partial, n, c, **sizes.sides(), **sizes.tiles())
    return reduced, partial


def strided_conv_input_gradient(dreduced: Tensor, taps: Tensor, skip_grad: Tensor, sizes: ReductionSizes) -> Tensor:
    """Return the gradient of `x` `[N, C, H, W]`, given the output's, plus `skip_grad` of the same shape."""
    n, c, height, width = skip_grad.shape
    dx = torch.empty_like(skip_grad)
    block = min(PIXELS, triton.next_power_of_2(height * width))
    _strided_input_gradient_kernel[(n * c, triton.cdiv(height * width, block))](
        dreduced, taps, skip_grad, dx, c, **sizes.sides(), L=sizes.positions(), BLOCK=block
    )
    return dx
