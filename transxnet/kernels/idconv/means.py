# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""IDConv's pooling: K x K adaptive means of every channel of `[N, C, H, W]`, and its global mean.

Bin (i, j) holds rows floor(i H / K) to ceil((i + 1) H / K) - 1, and columns likewise, as `F.adaptive_avg_pool2d`. The
sums of the bins are a matrix product on tensor cores: pixels times a matrix of zeros and ones that assigns pixels to
bins. The last column of the matrix, position K * K, is the global mean.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from transxnet.kernels.common.tiles import block_size

__all__ = ["adaptive_means", "adaptive_means_gradient"]

# Largest sides of a tile: channels, pixels. With four warps it spills registers on sm_90.
CHANNELS, PIXELS, WARPS = 32, 64, 8


@triton.jit
def _bin_membership(pixels, H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, BLOCK_P: tl.constexpr):
    # Whether a pixel belongs to the bin of a position, [pixels, BLOCK_P].
    p = tl.arange(0, BLOCK_P)
    row, column = pixels // W, pixels % W
    if H % K == 0 and W % K == 0:
        bin_index = row // (H // K) * K + column // (W // K)
        member = bin_index[:, None] == p[None, :]
    else:
        i, j = p // K, p % K
        down = (row[:, None] >= (i * H // K)[None, :]) & (row[:, None] < (((i + 1) * H + K - 1) // K)[None, :])
        right = (column[:, None] >= (j * W // K)[None, :]) & (column[:, None] < (((j + 1) * W + K - 1) // K)[None, :])
        member = down & right & (p < K * K)[None, :]
    return member | (p == K * K)[None, :]


@triton.jit
def _bin_areas(H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, BLOCK_P: tl.constexpr):
    # Number of pixels in the bin of each position, [BLOCK_P] fp32.
    p = tl.arange(0, BLOCK_P)
    i, j = p // K, p % K
    height = ((i + 1) * H + K - 1) // K - i * H // K
    width = ((j + 1) * W + K - 1) // K - j * W // K
    return tl.where(p == K * K, H * W, height * width).to(tl.float32)


@triton.jit
def _means_kernel(
    x_ptr, pooled_ptr, C, H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of channels, sample): the means.
    n = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.arange(0, BLOCK_P)
    total = tl.zeros([BLOCK_C, BLOCK_P], dtype=tl.float32)
    for start in range(0, H * W, BLOCK_X):
        pixels = start + tl.arange(0, BLOCK_X)
        mask = (c < C)[:, None] & (pixels < H * W)[None, :]
        x = tl.load(x_ptr + (n * C + c[:, None]) * (H * W) + pixels[None, :], mask=mask, other=0.0)
        total = tl.dot(x, _bin_membership(pixels, H, W, K, BLOCK_P).to(x.dtype), total, input_precision="ieee")
    pooled = total * (1.0 / _bin_areas(H, W, K, BLOCK_P))[None, :]
    offsets = (n * C + c[:, None]) * (K * K + 1) + p[None, :]
    tl.store(
        pooled_ptr + offsets, pooled.to(pooled_ptr.dtype.element_ty), mask=(c < C)[:, None] & (p <= K * K)[None, :]
    )


@triton.jit
def _means_gradient_kernel(
    dpooled_ptr, dx_ptr, C, H: tl.constexpr, W: tl.constexpr, K: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_X: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of pixels, block of channels, sample): the gradient of the means' input, added to dx.
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    pixels = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    p = tl.arange(0, BLOCK_P)
    offsets = (n * C + c[:, None]) * (K * K + 1) + p[None, :]
    grad = tl.load(dpooled_ptr + offsets, mask=(c < C)[:, None] & (p <= K * K)[None, :], other=0.0)
    grad = (grad.to(tl.float32) * (1.0 / _bin_areas(H, W, K, BLOCK_P))[None, :]).to(grad.dtype)
    dx = tl.dot(grad, tl.trans(_bin_membership(pixels, H, W, K, BLOCK_P).to(grad.dtype)), input_precision="ieee")
    mask = (c < C)[:, None] & (pixels < H * W)[None, :]
    offsets = (n * C + c[:, None]) * (H * W) + pixels[None, :]
    dx += tl.load(dx_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def _blocks(c: int, h: int, w: int, kernel: int) -> dict[str, int]:
    return {
        "BLOCK_C": block_size(c, CHANNELS),
        "BLOCK_X": block_size(h * w, PIXELS),
        "BLOCK_P": block_size(kernel**2 + 1),
    }


def adaptive_means(x: Tensor, kernel: int) -> Tensor:
    """Return K x K adaptive means of contiguous `x`, K = `kernel`, then its global mean: `[N, C, K * K + 1]`."""
    n, c, h, w = x.shape
    pooled = torch.empty((n, c, kernel**2 + 1), dtype=x.dtype, device=x.device)
    blocks = _blocks(c, h, w, kernel)
    grid = (triton.cdiv(c, blocks["BLOCK_C"]), n)
    _means_kernel[grid](x, pooled, c, H=h, W=w, K=kernel, **blocks, num_warps=WARPS)
    return pooled


def adaptive_means_gradient(dpooled: Tensor, dx: Tensor, kernel: int) -> None:
    """Add to `dx` `[N, C, H, W]` the gradient that flows through the means, given `dpooled` `[N, C, K * K + 1]`."""
    n, c, h, w = dx.shape
    blocks = _blocks(c, h, w, kernel)
    grid = (triton.cdiv(h * w, blocks["BLOCK_X"]), triton.cdiv(c, blocks["BLOCK_C"]), n)
    _means_gradient_kernel[grid](dpooled, dx, c, H=h, W=w, K=kernel, **blocks)
