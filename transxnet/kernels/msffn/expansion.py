# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""MS-FFN's expansion: a 1x1 convolution, GELU and the norm after them; forward up to GELU, backward from the norm.

    h = M x,   g = gelu(h),   e = norm(g)        per pixel; M is [O, C]

The backward kernel takes the gradient of e through norm and GELU as it loads it.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from transxnet.kernels.common.activation import norm_gradient
from transxnet.kernels.common.linear import (
    DEPTH,
    WARPS,
    WIDE_ROWS,
    matrix_gradient,
    multiply,
    tile_pixels,
)
from transxnet.kernels.common.statistics import PartialStats
from transxnet.kernels.common.tiles import block_size, first_channel_offsets, locate_block

__all__ = ["expand_gelu", "expand_gelu_gradient"]

# Two maps are read in a step: a third stage of both would spill registers on sm_80.
STAGES = 2


@triton.jit
def _expand_gradient_kernel(
    grad_ptr, matrix_ptr, h_ptr, mean_ptr, rstd_ptr, weight_ptr, sums_ptr, dh_ptr, dx_ptr, inverse_count, N, C, OUT,
    HW: tl.constexpr, BATCH_STATS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of inputs, block of all samples' pixels): take grad through norm and GELU as it is loaded, store it
    # as dh, then dx = M^T dh.
    row, column = locate_block(C, BLOCK_C)
    c = row * BLOCK_C + tl.arange(0, BLOCK_C)
    pixels = column * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (pixels < N * HW)[None, :]
    at = first_channel_offsets(pixels, OUT, HW)[None, :]
    acc = tl.zeros([BLOCK_C, BLOCK_P], dtype=tl.float32)
    for start in range(0, OUT, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        mask = (o < OUT)[:, None] & inside
        offsets = at + (o * HW)[:, None]
        h = tl.load(h_ptr + offsets, mask=mask, other=0.0)
        grad = tl.load(grad_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        dh = norm_gradient(
            h, grad, o, o < OUT, mean_ptr, rstd_ptr, weight_ptr, sums_ptr, inverse_count, OUT, BATCH_STATS
        )
        dh = tl.where(mask, dh, 0.0).to(dh_ptr.dtype.element_ty)
        if row == 0:
            tl.store(dh_ptr + offsets, dh, mask=mask)
        matrix = tl.load(
            matrix_ptr + o[:, None] * C + c[None, :], mask=(o < OUT)[:, None] & (c < C)[None, :], other=0.0
        )
        acc = tl.dot(tl.trans(matrix), dh, acc, input_precision="ieee")
    offsets = first_channel_offsets(pixels, C, HW)[None, :] + (c * HW)[:, None]
    tl.store(dx_ptr + offsets, acc.to(dx_ptr.dtype.element_ty), mask=(c < C)[:, None] & inside)


def expand_gelu(x: Tensor, matrix: Tensor, *, take_stats: bool) -> tuple[Tensor, Tensor, PartialStats | None]:
    """Return `h = matrix x`, `gelu(h)`, and the partial statistics of `gelu(h)` if `take_stats`.

    `x` is `[N, C, H, W]`, `matrix` is `[O, C]` in the same dtype.
    """
    gelu_out = torch.empty((x.shape[0], matrix.shape[0], *x.shape[2:]), dtype=x.dtype, device=x.device)
    h, stats_out = multiply(x, matrix, None, None, gelu_out, take_stats=take_stats, apply_gelu=True)
    return h, gelu_out, stats_out


def expand_gelu_gradient(
    x: Tensor, matrix: Tensor, h: Tensor, grad: Tensor, norm: tuple[Tensor, Tensor, Tensor], global_sums: Tensor,
    inverse_count: float, *, from_batch: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of `x` and `matrix` (fp32), given `grad`, the gradient of `norm(gelu(h))`.

    `norm` is mean, rstd and weight; `global_sums` and `inverse_count` are the results of `Statistics.sum_over_ranks`;
    `from_batch` tells whether the norm uses batch statistics.
    """
    (o, c), n, hw = matrix.shape, len(x), x.shape[2] * x.shape[3]
    dx, dh = torch.empty_like(x), torch.empty_like(h)
    block_c = block_size(c, WIDE_ROWS)
    block_p = tile_pixels(block_c, n * hw, hw)
    _expand_gradient_kernel[(triton.cdiv(c, block_c) * triton.cdiv(n * hw, block_p),)](
        grad, matrix, h, *norm, global_sums, dh, dx, inverse_count, n, c, o, HW=hw,
        BATCH_STATS=from_batch, BLOCK_O=block_size(o, DEPTH), BLOCK_C=block_c, BLOCK_P=block_p, num_warps=WARPS,
        num_stages=STAGES,
    )  # fmt: skip
    return dx, matrix_gradient(dh, x, None, total=False).sum(0)
