# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""1x1 convolutions over `[N, C, H, W]`, fused with the GELU and BatchNorm before them and the statistics after them.

    o = M y + offset,   y = weight * xhat + bias,   xhat = (gelu(x) - mean) * rstd        per pixel; M is [O, C]

Forward: `x` is activated and normalised as it is loaded, and the partial statistics of `o` (or of `gelu(o)`) for the
next norm are taken as `o` is stored. So neither `gelu(x)` nor `y` is written to memory. With the output's gradient g, G
= sum of g and V = sum of g xhat^T over all pixels:

    d offset = G        d M = V diag(weight) + G bias^T        d bias = M^T G        d weight = column sums of M * V
    d x = gelu'(x) weight rstd (M^T g - d bias / count - xhat d weight / count)

Both sums in the norm's gradient follow from the matrix gradient, so the backward reads `x` twice and no other tensor of
its size. Sums over pixels are split over programs, and the splits are added in a fixed order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.kernels.common.activation import batch_statistics, gelu, norm_gradient
from transxnet.kernels.common.statistics import PartialStats
from transxnet.kernels.common.tiles import block_size, first_channel_offsets, locate_block

__all__ = [
    "gelu_norm_linear",
    "gelu_norm_linear_reference",
    "matrix_gradient",
    "multiply",
    "tile_pixels",
]

PROGRAMS = 264
# Largest tile sides (and the number of warps) that spill no registers on sm_80 and sm_90.
ROWS, WIDE_ROWS, COLUMNS, DEPTH, WARPS = 128, 256, 64, 32, 8
# Tiles of so few outputs take half as many warps: with more, the compiler aims at too few registers for each.
FEW_ROWS = 16


def gelu_norm_linear_reference(x: Tensor, norm: nn.BatchNorm2d, matrix: Tensor, offset: Tensor | None) -> Tensor:
    """Return `conv1x1(norm(gelu(x)))` in plain PyTorch."""
    return F.conv2d(norm(F.gelu(x)), matrix, offset)


@triton.jit
def _linear_kernel(
    x_ptr, matrix_ptr, offset_ptr, mean_ptr, rstd_ptr, weight_ptr, bias_ptr, out_ptr, gelu_ptr, partial_ptr, N, C, OUT,
    HW: tl.constexpr, NORM: tl.constexpr, HAS_OFFSET: tl.constexpr, STORE_GELU: tl.constexpr, TAKE_STATS: tl.constexpr,
    GELU: tl.constexpr, TRANSPOSED: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of outputs, block of all samples' pixels). NORM: x is activated and normalised on load. TAKE_STATS:
    # store partial statistics of the output, or with GELU of gelu(output), one chunk for each block of pixels.
    # STORE_GELU: store gelu(output) too. TRANSPOSED: the matrix is stored as [C, OUT].
    row, column = locate_block(OUT, BLOCK_O)
    o = row * BLOCK_O + tl.arange(0, BLOCK_O)
    pixels = column * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (pixels < N * HW)[None, :]
    at = first_channel_offsets(pixels, C, HW)[None, :]
    acc = tl.zeros([BLOCK_O, BLOCK_P], dtype=tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        in_range = c < C
        x = tl.load(x_ptr + (at + (c * HW)[:, None]), mask=in_range[:, None] & inside, other=0.0)
        if NORM:
            scale = tl.load(rstd_ptr + c, mask=in_range, other=0.0) * tl.load(weight_ptr + c, mask=in_range, other=0.0)
            shift = (
                tl.load(bias_ptr + c, mask=in_range, other=0.0)
                - tl.load(mean_ptr + c, mask=in_range, other=0.0) * scale
            )
            x = (gelu(x.to(tl.float32), x.dtype) * scale[:, None] + shift[:, None]).to(x.dtype)
        offsets = c[None, :] * OUT + o[:, None] if TRANSPOSED else o[:, None] * C + c[None, :]
        matrix = tl.load(matrix_ptr + offsets, mask=(o < OUT)[:, None] & in_range[None, :], other=0.0)
        acc = tl.dot(matrix, x, acc, input_precision="ieee")
    if HAS_OFFSET:
        acc += tl.load(offset_ptr + o, mask=o < OUT, other=0.0).to(tl.float32)[:, None]
    mask = (o < OUT)[:, None] & inside
    offsets = first_channel_offsets(pixels, OUT, HW)[None, :] + (o * HW)[:, None]
    tl.store(out_ptr + offsets, acc.to(out_ptr.dtype.element_ty), mask=mask)
    if GELU:
        acc = gelu(acc, out_ptr.dtype.element_ty)
    if STORE_GELU:
        tl.store(gelu_ptr + offsets, acc.to(gelu_ptr.dtype.element_ty), mask=mask)
    if TAKE_STATS:
        size = tl.minimum(N * HW - column * BLOCK_P, BLOCK_P)
        total = tl.sum(tl.where(mask, acc, 0.0), 1)
        deviation = tl.where(mask, acc - (total / size)[:, None], 0.0)
        pointers = partial_ptr + (column.to(tl.int64) * 2) * OUT + o
        tl.store(pointers, total, mask=o < OUT)
        tl.store(pointers + OUT, tl.sum(deviation * deviation, 1), mask=o < OUT)


@triton.jit
def _matrix_gradient_kernel(
    grad_ptr, x_ptr, mean_ptr, rstd_ptr, partial_ptr, N, C, OUT, length,
    HW: tl.constexpr, NORM: tl.constexpr, TOTAL: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of outputs, block of inputs, split): sum over `length` of all samples' pixels. V goes to
    # partial[split, 0 : OUT * C], without NORM grad x^T in its place; with TOTAL, G follows it (computed as a product
    # with ones).
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
        from_grad = grad_ptr + (first_channel_offsets(pixels, OUT, HW)[None, :] + (o * HW)[:, None])
        grad = tl.load(from_grad, mask=(o < OUT)[:, None] & inside, other=0.0)
        from_x = x_ptr + (first_channel_offsets(pixels, C, HW)[None, :] + (c * HW)[:, None])
        x = tl.load(from_x, mask=(c < C)[:, None] & inside, other=0.0)
        if NORM:
            x = (gelu(x.to(tl.float32), x.dtype) * rstd[:, None] - shift[:, None]).to(x.dtype)
        if TOTAL:
            total = tl.dot(grad, ones, total, input_precision="ieee")
        acc = tl.dot(grad, tl.trans(x), acc, input_precision="ieee")
    sums_out = partial_ptr + split.to(tl.int64) * (OUT * C + OUT if TOTAL else OUT * C)
    tl.store(sums_out + o[:, None] * C + c[None, :], acc, mask=(o < OUT)[:, None] & (c < C)[None, :])
    if TOTAL and tl.program_id(1) == 0:
        tl.store(sums_out + OUT * C + o, tl.max(total, 1), mask=o < OUT)


@triton.jit
def _reduce_matrix_gradient_kernel(
    partial_ptr, matrix_ptr, weight_ptr, bias_ptr, dmatrix_ptr, doffset_ptr, sums_ptr, C, OUT,
    splits, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    # Program (block of inputs): add up the splits; store d M, d offset, and as sums[0:2] d bias and d weight.
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
            sums_out = partial_ptr + tl.cast(split, tl.int64) * (OUT * C + OUT)
            v += tl.load(sums_out + o[:, None] * C + c[None, :], mask=mask, other=0.0)
            total += tl.load(sums_out + OUT * C + o, mask=o < OUT, other=0.0)
        offsets = o[:, None] * C + c[None, :]
        matrix = tl.load(matrix_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(dmatrix_ptr + offsets, v * weight[None, :] + total[:, None] * bias[None, :], mask=mask)
        if tl.program_id(0) == 0:
            tl.store(doffset_ptr + o, total, mask=o < OUT)
        dbias += tl.sum(matrix * total[:, None], 0)
        dweight += tl.sum(matrix * v, 0)
    tl.store(sums_ptr + c, dbias, mask=c < C)
    tl.store(sums_ptr + C + c, dweight, mask=c < C)


@triton.jit
def _input_gradient_kernel(
    grad_ptr, matrix_ptr, x_ptr, mean_ptr, rstd_ptr, weight_ptr, sums_ptr, dx_ptr, inverse_count, N, C, OUT,
    HW: tl.constexpr, BATCH_STATS: tl.constexpr, BLOCK_O: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of inputs, block of all samples' pixels): M^T g, then the gradient through the norm and GELU.
    row, column = locate_block(C, BLOCK_C)
    c = row * BLOCK_C + tl.arange(0, BLOCK_C)
    pixels = column * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (pixels < N * HW)[None, :]
    at = first_channel_offsets(pixels, OUT, HW)[None, :]
    acc = tl.zeros([BLOCK_C, BLOCK_P], dtype=tl.float32)
    for start in range(0, OUT, BLOCK_O):
        o = start + tl.arange(0, BLOCK_O)
        in_range = (o < OUT)[:, None]
        grad = tl.load(grad_ptr + (at + (o * HW)[:, None]), mask=in_range & inside, other=0.0)
        matrix = tl.load(matrix_ptr + o[:, None] * C + c[None, :], mask=in_range & (c < C)[None, :], other=0.0)
        acc = tl.dot(tl.trans(matrix), grad, acc, input_precision="ieee")
    mask = (c < C)[:, None] & inside
    offsets = first_channel_offsets(pixels, C, HW)[None, :] + (c * HW)[:, None]
    x = tl.load(x_ptr + offsets, mask=mask, other=0.0)
    dx = norm_gradient(x, acc, c, c < C, mean_ptr, rstd_ptr, weight_ptr, sums_ptr, inverse_count, C, BATCH_STATS)
    tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)


def tile_pixels(rows: int, values: int, hw: int) -> int:
    """Return the number of pixels in a tile of `rows` channels, for maps of `hw` pixels and `values` pixels in all.

    Planes of an odd size are loaded value by value, which takes more registers; their tiles are narrower.
    """
    return block_size(values, 2 * COLUMNS if rows <= ROWS and hw % 2 == 0 else COLUMNS)


def multiply(
    x: Tensor, matrix: Tensor, offset: Tensor | None, norm: tuple[Tensor, ...] | None = None,
    gelu_out: Tensor | None = None, *, take_stats: bool = False, apply_gelu: bool = False, transposed: bool = False,
) -> tuple[Tensor, PartialStats | None]:  # fmt: skip
    """Return `matrix` times `x` `[N, C, H, W]`, and the partial statistics of the result if `take_stats`.

    Args:
        x: activated with GELU and normalised on load if `norm` is given.
        matrix: `[O, C]` in the dtype of `x`; `[C, O]` if `transposed`.
        offset: `[O]`, added to the result.
        norm: mean, rstd, weight and bias, `[C]` each.
        gelu_out: `[N, O, H, W]`, filled with GELU of the result.
        take_stats: whether partial statistics are taken.
        apply_gelu: whether they are those of GELU of the result.
        transposed: whether `matrix` is stored transposed.
    """
    (n, c, height, width), o = x.shape, matrix.shape[1 if transposed else 0]
    hw = height * width
    out = torch.empty((n, o, height, width), dtype=x.dtype, device=x.device)
    # One block of outputs if possible, because every block evaluates GELU again.
    block_o = block_size(o, ROWS if norm is None else WIDE_ROWS)
    block_p = tile_pixels(block_o, n * hw, hw)
    blocks = triton.cdiv(n * hw, block_p)
    partial = torch.empty((blocks, 2, o) if take_stats else 1, dtype=torch.float32, device=x.device)
    _linear_kernel[(triton.cdiv(o, block_o) * blocks,)](
        x, matrix, matrix if offset is None else offset, *(norm or (x, x, x, x)), out,
        out if gelu_out is None else gelu_out, partial, n, c, o, HW=hw, NORM=norm is not None,
        HAS_OFFSET=offset is not None, STORE_GELU=gelu_out is not None, TAKE_STATS=take_stats,
        GELU=apply_gelu, TRANSPOSED=transposed, BLOCK_O=block_o, BLOCK_P=block_p,
        BLOCK_C=block_size(c, DEPTH * ROWS // max(block_o, ROWS)),
        num_warps=WARPS if block_o > FEW_ROWS else WARPS // 2,
    )  # fmt: skip
    return out, PartialStats(partial, block_p, n * hw, n * hw) if take_stats else None


def _gradient_tile_outputs(size: int, hw: int, *, normalised: bool) -> int:
    # One block of outputs if possible, because every block evaluates GELU again. Planes of an odd size are loaded value
    # by value, which takes more registers.
    return block_size(size, WIDE_ROWS if normalised and hw % 2 == 0 else ROWS)


def _gradient_tile_pixels(rows: int) -> int:
    # Two or three tiles are in shared memory at a time.
    return DEPTH if rows > ROWS else 2 * DEPTH


def matrix_gradient(grad: Tensor, x: Tensor, stats: tuple[Tensor, Tensor] | None, *, total: bool = True) -> Tensor:
    """Return per-split sums for the matrix gradient: `[splits, O * C + O]`, fp32.

    The first O * C values are V, or `grad x^T` if `stats` is None; the last O, only with `total`, are G.
    """
    n, c, hw, o = x.shape[0], x.shape[1], x.shape[2] * x.shape[3], grad.shape[1]
    block_o, block_c = _gradient_tile_outputs(o, hw, normalised=stats is not None), block_size(c, COLUMNS)
    block_p = _gradient_tile_pixels(block_o)
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
        norm: nn.BatchNorm2d, partial_stats: PartialStats | None, take_stats: bool, out_gelu: bool,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        stats = batch_statistics(x, norm, partial_stats, apply_gelu=True)
        low_matrix = matrix.flatten(1).to(x.dtype)
        out, stats_out = multiply(
            x,
            low_matrix,
            offset,
            (stats.mean, stats.rstd, weight, bias),
            None,
            take_stats=take_stats,
            apply_gelu=out_gelu,
        )
        ctx.save_for_backward(x, weight, bias, low_matrix)
        ctx.stats, ctx.matrix = stats, (matrix.shape, matrix.dtype)
        ctx.offset_dtype = None if offset is None else offset.dtype
        if stats_out is None:
            return out, None
        ctx.mark_non_differentiable(stats_out.partial)
        ctx.set_materialize_grads(False)
        return out, stats_out.partial

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        x, weight, bias, low_matrix = ctx.saved_tensors
        stats, (o, c), hw = ctx.stats, low_matrix.shape, x.shape[2] * x.shape[3]
        grad = grad_outputs[0].contiguous()
        partial = matrix_gradient(grad, x, (stats.mean, stats.rstd))
        dmatrix = torch.empty((o, c), dtype=torch.float32, device=x.device)
        doffset = torch.empty(o, dtype=torch.float32, device=x.device)
        sums = torch.empty((2, c), dtype=torch.float32, device=x.device)
        _reduce_matrix_gradient_kernel[(triton.cdiv(c, 16),)](
            partial, low_matrix, weight, bias, dmatrix, doffset, sums, c, o, len(partial),
            BLOCK_O=block_size(o, DEPTH), BLOCK_C=16,
        )  # fmt: skip
        global_sums, inverse_count = stats.sum_over_ranks(sums)
        dx = torch.empty_like(x)
        n, block_c = len(x), block_size(c, COLUMNS)
        block_p = tile_pixels(block_c, n * hw, hw)
        _input_gradient_kernel[(triton.cdiv(c, block_c) * triton.cdiv(n * hw, block_p),)](
            grad, low_matrix, x, stats.mean, stats.rstd, weight, global_sums, dx, inverse_count, n, c, o, HW=hw,
            BATCH_STATS=stats.from_batch, BLOCK_O=block_size(o, DEPTH), BLOCK_C=block_c, BLOCK_P=block_p,
            num_warps=WARPS,
        )  # fmt: skip
        offset = None if ctx.offset_dtype is None else doffset.to(ctx.offset_dtype)
        affine = (sums[1].to(weight.dtype), sums[0].to(weight.dtype))
        return dx, *affine, dmatrix.view(ctx.matrix[0]).to(ctx.matrix[1]), offset, None, None, None, None


def gelu_norm_linear(
    x: Tensor, norm: nn.BatchNorm2d, matrix: Tensor, offset: Tensor | None, partial_stats: PartialStats | None = None,
    *, out_gelu: bool = False,
) -> tuple[Tensor, PartialStats | None]:  # fmt: skip
    """Return `conv1x1(norm(gelu(x)))` and, in training, its partial statistics for the next norm.

    Args:
        x: `[N, C, H, W]` in fp32, bf16 or fp16.
        norm: parameters and statistics in fp32.
        matrix: `[O, C, 1, 1]`.
        offset: `[O]` or None.
        partial_stats: of `gelu(x)`, if the kernel that wrote `x` took them.
        out_gelu: whether the returned partial statistics are those of GELU of the result.

    Raises:
        ValueError: a batch in training has a single value per channel.
    """
    out, partial = _GeluNormLinearFunction.apply(
        x.contiguous(), norm.weight, norm.bias, matrix, offset, norm, partial_stats, norm.training, out_gelu
    )
    if partial is None:
        return out, None
    n, o, height, width = out.shape
    values = n * height * width
    return out, PartialStats(partial, tile_pixels(block_size(o, WIDE_ROWS), values, height * width), values, values)
