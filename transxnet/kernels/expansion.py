# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""MS-FFN's expansion, a 1x1 convolution with GELU and a norm behind it: forward up to GELU, backward from the norm."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from transxnet.kernels.linear import DEPTH, WARPS, WIDE_ROWS, columns, matrix_gradient, multiply, norm_gradient
from transxnet.kernels.pixels import block, first_channel, place_block
from transxnet.kernels.statistics import Pieces

__all__ = ["expand_gelu", "expand_gelu_gradient"]


@triton.jit
def _expand_gradient_kernel(
    grad_ptr, matrix_ptr, h_ptr, mean_ptr, rstd_ptr, weight_ptr, sums_ptr, dh_ptr, dx_ptr, inverse_count, N, C, OUT,
    HW: tl.constexpr, BATCH: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of inputs, block of all samples' pixels): grad back through norm and GELU on load, stored as dh,
    # then dx = M^T dh.
    row, column = place_block(C, BLOCK_C)
    c = row * BLOCK_C + tl.arange(0, BLOCK_C)
    pixels = column * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (pixels < N * HW)[None, :]
    at = first_channel(pixels, OUT, HW)[None, :]
    acc = tl.zeros([BLOCK_C, BLOCK_P], dtype=tl.float32)
    for start in range(0, OUT, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        mask = (o < OUT)[:, None] & inside
        where = at + (o * HW)[:, None]
        h = tl.load(h_ptr + where, mask=mask, other=0.0)
        grad = tl.load(grad_ptr + where, mask=mask, other=0.0).to(tl.float32)
        dh = norm_gradient(h, grad, o, o < OUT, mean_ptr, rstd_ptr, weight_ptr, sums_ptr, inverse_count, OUT, BATCH)
        dh = tl.where(mask, dh, 0.0).to(dh_ptr.dtype.element_ty)
        if row == 0:
            tl.store(dh_ptr + where, dh, mask=mask)
        matrix = tl.load(
            matrix_ptr + o[:, None] * C + c[None, :], mask=(o < OUT)[:, None] & (c < C)[None, :], other=0.0
        )
        acc = tl.dot(tl.trans(matrix), dh, acc, input_precision="ieee")
    where = first_channel(pixels, C, HW)[None, :] + (c * HW)[:, None]
    tl.store(dx_ptr + where, acc.to(dx_ptr.dtype.element_ty), mask=(c < C)[:, None] & inside)


def expand_gelu(x: Tensor, matrix: Tensor, *, pieces: bool) -> tuple[Tensor, Tensor, Pieces | None]:
    """`h = matrix x`, `gelu(h)` and pieces of it; `x` is `[N, C, H, W]`, `matrix` `[O, C]` in its dtype."""
    kept = torch.empty((x.shape[0], matrix.shape[0], *x.shape[2:]), dtype=x.dtype, device=x.device)
    h, made = multiply(x, matrix, None, None, kept, pieces=pieces, apply_gelu=True)
    return h, kept, made


def expand_gelu_gradient(
    x: Tensor, matrix: Tensor, h: Tensor, grad: Tensor, norm: tuple[Tensor, Tensor, Tensor], shared: Tensor,
    inverse_count: float, *, batch: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of `x` and `matrix` (fp32) from `grad`, that of `norm(gelu(h))`.

    `norm` is mean, rstd and weight; `shared` and `inverse_count` are what `Statistics.shared` gives; `batch` says
    whether the norm's statistics are the batch's.
    """
    (o, c), n, hw = matrix.shape, len(x), x.shape[2] * x.shape[3]
    dx, dh = torch.empty_like(x), torch.empty_like(h)
    block_c = block(c, WIDE_ROWS)
    block_p = columns(block_c, n * hw, hw)
    _expand_gradient_kernel[(triton.cdiv(c, block_c) * triton.cdiv(n * hw, block_p),)](
        grad, matrix, h, *norm, shared, dh, dx, inverse_count, n, c, o, HW=hw,
        BATCH=batch, BLOCK_O=block(o, DEPTH), BLOCK_C=block_c, BLOCK_P=block_p, num_warps=WARPS,
    )  # fmt: skip
    return dx, matrix_gradient(dh, x, None, total=False).sum(0)
