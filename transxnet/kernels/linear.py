# ruff: noqa: ANN001, ANN201, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""1x1 convolutions over `[N, C, H, W]` with GELU and BatchNorm on their way in or out of memory.

    o = M y + offset,   y = weight * vhat + bias,   vhat = (gelu(x) - mean) * rstd        per pixel; M is [O, C]

Forward: `x` is normalised as it is loaded, and the sums that the next norm needs of `o` (or of `gelu(o)`) are taken
as `o` is stored, so neither `gelu(x)` nor `y` is ever in memory. With g = d o, G = sum of g, V = sum of g vhat^T:

    d offset = G        d M = V diag(weight) + G bias^T        d bias = M^T G        d weight = column sums of M * V
    d x = gelu'(x) weight rstd (M^T g - d bias / count - vhat d weight / count)

so both sums of the norm's gradient follow from the matrix's, and `x` is read twice and nothing else of its size. Sums
over pixels are cut into splits and added in a fixed order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.kernels.activation import batch_statistics, gelu, gelu_with_gradient
from transxnet.kernels.pixels import block, first_channel, place_block
from transxnet.kernels.statistics import Pieces

__all__ = [
    "columns",
    "gelu_norm_linear",
    "gelu_norm_linear_reference",
    "matrix_gradient",
    "multiply",
    "norm_gradient",
]

PROGRAMS = 264
# Largest sides of a tile, and warps, that spill no registers on sm_80 and sm_90.
ROWS, WIDE_ROWS, COLUMNS, DEPTH, WARPS = 128, 256, 64, 32, 8


def gelu_norm_linear_reference(x: Tensor, norm: nn.BatchNorm2d, matrix: Tensor, offset: Tensor | None) -> Tensor:
    """`conv1x1(norm(gelu(x)))` in plain PyTorch."""
    return F.conv2d(norm(F.gelu(x)), matrix, offset)


@triton.jit
def _linear_kernel(
    x_ptr, matrix_ptr, offset_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, out_ptr, gelu_ptr, partial_ptr, N, C, OUT,
    HW: tl.constexpr, NORM: tl.constexpr, HAS_OFFSET: tl.constexpr, KEEP: tl.constexpr, PIECES: tl.constexpr,
    GELU: tl.constexpr, TURNED: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of outputs, block of all samples' pixels). NORM: x is normalised on load. PIECES: of the output, or
    # with GELU of its gelu, a piece each block of pixels. KEEP: the output's gelu is stored as well. TURNED: the matrix
    # is given as [C, OUT].
    row, column = place_block(OUT, BLOCK_O)
    o = row * BLOCK_O + tl.arange(0, BLOCK_O)
    pixels = column * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (pixels < N * HW)[None, :]
    at = first_channel(pixels, C, HW)[None, :]
    acc = tl.zeros([BLOCK_O, BLOCK_P], dtype=tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        live = c < C
        x = tl.load(x_ptr + (at + (c * HW)[:, None]), mask=live[:, None] & inside, other=0.0)
        if NORM:
            scale = tl.load(rstd_ptr + c, mask=live, other=0.0) * tl.load(weight_ptr + c, mask=live, other=0.0)
            shift = tl.load(bias_ptr + c, mask=live, other=0.0) - tl.load(mean_ptr + c, mask=live, other=0.0) * scale
            x = (gelu(x.to(tl.float32), x.dtype) * scale[:, None] + shift[:, None]).to(x.dtype)
        where = c[None, :] * OUT + o[:, None] if TURNED else o[:, None] * C + c[None, :]
        matrix = tl.load(matrix_ptr + where, mask=(o < OUT)[:, None] & live[None, :], other=0.0)
        acc = tl.dot(matrix, x, acc, input_precision="ieee")
    if HAS_OFFSET:
        acc += tl.load(offset_ptr + o, mask=o < OUT, other=0.0).to(tl.float32)[:, None]
    mask = (o < OUT)[:, None] & inside
    where = first_channel(pixels, OUT, HW)[None, :] + (o * HW)[:, None]
    tl.store(out_ptr + where, acc.to(out_ptr.dtype.element_ty), mask=mask)
    if GELU:
        acc = gelu(acc, out_ptr.dtype.element_ty)
    if KEEP:
        tl.store(gelu_ptr + where, acc.to(gelu_ptr.dtype.element_ty), mask=mask)
    if PIECES:
        size = tl.minimum(N * HW - column * BLOCK_P, BLOCK_P)
        total = tl.sum(tl.where(mask, acc, 0.0), 1)
        away = tl.where(mask, acc - (total / size)[:, None], 0.0)
        here = partial_ptr + (column.to(tl.int64) * 2) * OUT + o
        tl.store(here, total, mask=o < OUT)
        tl.store(here + OUT, tl.sum(away * away, 1), mask=o < OUT)


@triton.jit
def _matrix_gradient_kernel(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, partial_ptr, N, C, OUT, length,
    HW: tl.constexpr, NORM: tl.constexpr, TOTAL: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of outputs, block of inputs, split): over `length` of all samples' pixels, V into
    # partial[split, 0 : OUT * C] and behind it, if TOTAL, G, a product with ones; without NORM grad x^T in place of V.
    o = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    split = tl.program_id(2)
    rstd = tl.load(rstd_ptr + c, mask=c < C, other=0.0)
    shift = tl.load(mean_ptr + c, mask=c < C, other=0.0) * rstd
    acc = tl.zeros([BLOCK_O, BLOCK_C], dtype=tl.float32)
    ones = tl.full([BLOCK_P, 16], 1.0, grad_ptr.dtype.element_ty)
    total = tl.zeros([BLOCK_O, 16], dtype=tl.float32)
    for start in range(split * length, tl.minimum((split + 1) * length, N * HW), BLOCK_P):
        pixels = start + tl.arange(0, BLOCK_P)
        inside = (pixels < N * HW)[None, :]
        from_grad = grad_ptr + (first_channel(pixels, OUT, HW)[None, :] + (o * HW)[:, None])
        grad = tl.load(from_grad, mask=(o < OUT)[:, None] & inside, other=0.0)
        from_x = x_ptr + (first_channel(pixels, C, HW)[None, :] + (c * HW)[:, None])
        x = tl.load(from_x, mask=(c < C)[:, None] & inside, other=0.0)
        if NORM:
            x = (gelu(x.to(tl.float32), x.dtype) * rstd[:, None] - shift[:, None]).to(x.dtype)
        if TOTAL:
            total = tl.dot(grad, ones, total, input_precision="ieee")
        acc = tl.dot(grad, tl.trans(x), acc, input_precision="ieee")
    taken = partial_ptr + split.to(tl.int64) * (OUT * C + OUT if TOTAL else OUT * C)
    tl.store(taken + o[:, None] * C + c[None, :], acc, mask=(o < OUT)[:, None] & (c < C)[None, :])
    if TOTAL and tl.program_id(1) == 0:
        tl.store(taken + OUT * C + o, tl.max(total, 1), mask=o < OUT)


@triton.jit
def _finish_kernel(
    partial_ptr, matrix_ptr, weight_ptr, bias_ptr, dmatrix_ptr, doffset_ptr, sums_ptr, C, OUT,
    splits, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # Program (block of inputs): d M, d offset, and (d bias, d weight) as sums[0:2].
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    weight = tl.load(weight_ptr + c, mask=c < C, other=0.0)
    bias = tl.load(bias_ptr + c, mask=c < C, other=0.0)
    dbias = tl.zeros([BLOCK_C], dtype=tl.float32)
    dweight = tl.zeros([BLOCK_C], dtype=tl.float32)
    for start in range(0, OUT, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        mask = (o < OUT)[:, None] & (c < C)[None, :]
        v = tl.zeros([BLOCK_O, BLOCK_C], dtype=tl.float32)
        total = tl.zeros([BLOCK_O], dtype=tl.float32)
        for split in range(splits):
            taken = partial_ptr + tl.cast(split, tl.int64) * (OUT * C + OUT)
            v += tl.load(taken + o[:, None] * C + c[None, :], mask=mask, other=0.0)
            total += tl.load(taken + OUT * C + o, mask=o < OUT, other=0.0)
        where = o[:, None] * C + c[None, :]
        matrix = tl.load(matrix_ptr + where, mask=mask, other=0.0).to(tl.float32)
        tl.store(dmatrix_ptr + where, v * weight[None, :] + total[:, None] * bias[None, :], mask=mask)
        if tl.program_id(0) == 0:
            tl.store(doffset_ptr + o, total, mask=o < OUT)
        dbias += tl.sum(matrix * total[:, None], 0)
        dweight += tl.sum(matrix * v, 0)
    tl.store(sums_ptr + c, dbias, mask=c < C)
    tl.store(sums_ptr + C + c, dweight, mask=c < C)


@triton.jit
def norm_gradient(
    x, grad, c, live, mean_ptr, rstd_ptr, weight_ptr, sums_ptr, inverse_count, C, BATCH: tl.constexpr,
):  # fmt: skip
    """Gradient, fp32, of `x` in its own dtype from that of norm(gelu(x)), fp32; both [channels, pixels]."""
    rstd = tl.load(rstd_ptr + c, mask=live, other=0.0)
    scale = rstd * tl.load(weight_ptr + c, mask=live, other=0.0)
    value, slope = gelu_with_gradient(x.to(tl.float32), x.dtype)
    if BATCH:
        two = tl.load(sums_ptr + C + c, mask=live, other=0.0) * inverse_count * rstd
        one = tl.load(sums_ptr + c, mask=live, other=0.0) * inverse_count
        one -= tl.load(mean_ptr + c, mask=live, other=0.0) * two
        grad -= one[:, None] + value * two[:, None]
    return slope * (grad * scale[:, None])


@triton.jit
def _input_gradient_kernel(
    grad_ptr, matrix_ptr, x_ptr, mean_ptr, rstd_ptr, weight_ptr, sums_ptr, dx_ptr, inverse_count, N, C, OUT,
    HW: tl.constexpr, BATCH: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of inputs, block of all samples' pixels): M^T g, then back through the norm and GELU.
    row, column = place_block(C, BLOCK_C)
    c = row * BLOCK_C + tl.arange(0, BLOCK_C)
    pixels = column * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (pixels < N * HW)[None, :]
    at = first_channel(pixels, OUT, HW)[None, :]
    acc = tl.zeros([BLOCK_C, BLOCK_P], dtype=tl.float32)
    for start in range(0, OUT, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        live = (o < OUT)[:, None]
        grad = tl.load(grad_ptr + (at + (o * HW)[:, None]), mask=live & inside, other=0.0)
        matrix = tl.load(matrix_ptr + o[:, None] * C + c[None, :], mask=live & (c < C)[None, :], other=0.0)
        acc = tl.dot(tl.trans(matrix), grad, acc, input_precision="ieee")
    mask = (c < C)[:, None] & inside
    where = first_channel(pixels, C, HW)[None, :] + (c * HW)[:, None]
    x = tl.load(x_ptr + where, mask=mask, other=0.0)
    dx = norm_gradient(x, acc, c, c < C, mean_ptr, rstd_ptr, weight_ptr, sums_ptr, inverse_count, C, BATCH)
    tl.store(dx_ptr + where, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def columns(rows: int, values: int, hw: int) -> int:
    """Pixels of a tile of `rows`: values loaded one by one, where rows have an odd length, take more registers."""
    return block(values, 2 * COLUMNS if rows <= ROWS and hw % 2 == 0 else COLUMNS)


def multiply(
    x: Tensor, matrix: Tensor, offset: Tensor | None, norm: tuple[Tensor, ...] | None = None,
    kept: Tensor | None = None, *, pieces: bool = False, apply_gelu: bool = False, turned: bool = False,
) -> tuple[Tensor, Pieces | None]:  # fmt: skip
    """`matrix` `[O, C]` times `x`, normalised with `norm` (mean, rstd, weight, bias); pieces of what comes out.

    The matrix is in the dtype of `x`; `turned`: it is given as `[C, O]`.
    """
    (n, c, height, width), o = x.shape, matrix.shape[1 if turned else 0]
    hw = height * width
    out = torch.empty((n, o, height, width), dtype=x.dtype, device=x.device)
    # One block of outputs where it fits: each block evaluates GELU anew.
    block_o = block(o, ROWS if norm is None else WIDE_ROWS)
    block_p = columns(block_o, n * hw, hw)
    blocks = triton.cdiv(n * hw, block_p)
    partial = torch.empty((blocks, 2, o) if pieces else 1, dtype=torch.float32, device=x.device)
    _linear_kernel[(triton.cdiv(o, block_o) * blocks,)](
        x, matrix, matrix if offset is None else offset, *(norm or (x, x, x, x)), out, out if kept is None else kept,
        partial, n, c, o, HW=hw, NORM=norm is not None, HAS_OFFSET=offset is not None, KEEP=kept is not None,
        PIECES=pieces, GELU=apply_gelu, TURNED=turned, BLOCK_O=block_o, BLOCK_P=block_p,
        BLOCK_C=block(c, DEPTH * ROWS // max(block_o, ROWS)), num_warps=WARPS,
    )  # fmt: skip
    return out, Pieces(partial, block_p, n * hw, n * hw) if pieces else None


def _gradient_rows(size: int, hw: int, *, normalised: bool) -> int:
    # One block of outputs where it fits: each evaluates GELU anew. Values loaded one by one take more registers.
    return block(size, WIDE_ROWS if normalised and hw % 2 == 0 else ROWS)


def _gradient_columns(rows: int) -> int:
    # Pixels of a tile, of which two or three are in shared memory.
    return DEPTH if rows > ROWS else 2 * DEPTH


def matrix_gradient(grad: Tensor, x: Tensor, stats: tuple[Tensor, Tensor] | None, *, total: bool = True) -> Tensor:
    """Partial sums of V, or of `grad x^T` without `stats`, and with `total` of G: `[splits, O * C + O]`, fp32."""
    n, c, hw, o = x.shape[0], x.shape[1], x.shape[2] * x.shape[3], grad.shape[1]
    block_o, block_c = _gradient_rows(o, hw, normalised=stats is not None), block(c, COLUMNS)
    block_p = _gradient_columns(block_o)
    tiles = triton.cdiv(o, block_o) * triton.cdiv(c, block_c)
    length = triton.cdiv(triton.cdiv(n * hw, triton.cdiv(PROGRAMS, tiles)), block_p) * block_p
    splits = triton.cdiv(n * hw, length)
    partial = torch.empty((splits, o * c + o if total else o * c), dtype=torch.float32, device=x.device)
    _matrix_gradient_kernel[(triton.cdiv(o, block_o), triton.cdiv(c, block_c), splits)](
        grad, x, *(stats or (x, x)), partial, n, c, o, length, HW=hw, NORM=stats is not None,
        TOTAL=total, BLOCK_O=block_o, BLOCK_C=block_c, BLOCK_P=block_p, num_warps=WARPS,
    )  # fmt: skip
    return partial


class _GeluNormLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, matrix: Tensor, offset: Tensor | None,
        norm: nn.BatchNorm2d, pieces: Pieces | None, out_pieces: bool, out_gelu: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        stats = batch_statistics(x, norm, pieces, apply_gelu=True)
        low = matrix.flatten(1).to(x.dtype)
        out, made = multiply(
            x, low, offset, (stats.mean, stats.rstd, weight, bias), None, pieces=out_pieces, apply_gelu=out_gelu
        )
        ctx.save_for_backward(x, weight, bias, low)
        ctx.stats, ctx.matrix = stats, (matrix.shape, matrix.dtype)
        ctx.offset_dtype = None if offset is None else offset.dtype
        if made is None:
            return out, None
        ctx.mark_non_differentiable(made.partial)
        ctx.set_materialize_grads(False)
        return out, made.partial

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        x, weight, bias, low = ctx.saved_tensors
        stats, (o, c), hw = ctx.stats, low.shape, x.shape[2] * x.shape[3]
        grad = grad_outputs[0].contiguous()
        partial = matrix_gradient(grad, x, (stats.mean, stats.rstd))
        dmatrix = torch.empty((o, c), dtype=torch.float32, device=x.device)
        doffset = torch.empty(o, dtype=torch.float32, device=x.device)
        sums = torch.empty((2, c), dtype=torch.float32, device=x.device)
        _finish_kernel[(triton.cdiv(c, 16),)](
            partial, low, weight, bias, dmatrix, doffset, sums, c, o, len(partial),
            BLOCK_O=block(o, DEPTH), BLOCK_C=16,
        )  # fmt: skip
        shared, inverse_count = stats.shared(sums)
        dx = torch.empty_like(x)
        n, block_c = len(x), block(c, COLUMNS)
        block_p = columns(block_c, n * hw, hw)
        _input_gradient_kernel[(triton.cdiv(c, block_c) * triton.cdiv(n * hw, block_p),)](
            grad, low, x, stats.mean, stats.rstd, weight, shared, dx, inverse_count, n, c, o, HW=hw,
            BATCH=stats.of_batch, BLOCK_O=block(o, DEPTH), BLOCK_C=block_c, BLOCK_P=block_p, num_warps=WARPS,
        )  # fmt: skip
        offset = None if ctx.offset_dtype is None else doffset.to(ctx.offset_dtype)
        affine = (sums[1].to(weight.dtype), sums[0].to(weight.dtype))
        return dx, *affine, dmatrix.view(ctx.matrix[0]).to(ctx.matrix[1]), offset, None, None, None, None


def gelu_norm_linear(
    x: Tensor, norm: nn.BatchNorm2d, matrix: Tensor, offset: Tensor | None, pieces: Pieces | None = None,
    *, out_gelu: bool = False,
) -> tuple[Tensor, Pieces | None]:  # fmt: skip
    """`conv1x1(norm(gelu(x)))`, and in training the pieces of it (with `out_gelu`, of its GELU) for the norm to come.

    `x` is `[N, C, H, W]` in fp32, bf16 or fp16, `matrix` `[O, C, 1, 1]`, `offset` `[O]`; parameters and statistics of
    `norm` in fp32. `pieces` are those of `gelu(x)`, where its maker took them.

    Raises:
        ValueError: training on a single value per channel.
    """
    out, partial = _GeluNormLinearFunction.apply(
        x.contiguous(), norm.weight, norm.bias, matrix, offset, norm, pieces, norm.training, out_gelu
    )
    if partial is None:
        return out, None
    n, o, height, width = out.shape
    values = n * height * width
    return out, Pieces(partial, columns(block(o, WIDE_ROWS), values, height * width), values, values)
