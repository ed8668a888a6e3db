# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""The gradients of IDConv's kernel generation: see `kernel_generation`.

With W the table, p the softmax over g and d the kernels' gradient, per sample, channel and position:

    d logits = p (d W - sum over g of p d W)      d W = sum over samples of p d

The gradient goes back from the logits to `hidden`, whose norm wants its two sums first, and from there to the means.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from transxnet.kernels.activation import gelu_with_gradient
from transxnet.kernels.kernel_generation import (
    CHANNELS,
    ROWS,
    Generated,
    Generator,
    Sizes,
    load_activation,
    load_standardised,
    load_table,
    softmax,
)
from transxnet.kernels.pixels import block

__all__ = ["generate_gradient"]

# How far the loads of `_squeeze_gradient_kernel` run ahead: the most that spills no registers on sm_80 with triton 3.6.
STAGES = 2


@triton.jit
def _mix_gradient_kernel(
    dkernel_ptr, hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, weight_ptr, shift_ptr,
    expand_ptr, offset_ptr, taps_ptr, bias_ptr, dlogits_ptr, partial_ptr, N, C, R, G, samples, K: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of channels, split): of `samples` samples the logits' gradient, and sums over them: a row of
    # partial for each split, the gradients of offset [G C], taps [G C, K * K] and bias [G C].
    split = tl.program_id(1)
    r, p, rows = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_C * BLOCK_G)
    channel, group = tl.program_id(0) * BLOCK_C + rows // BLOCK_G, rows % BLOCK_G
    row, live = group * C + channel, (channel < C) & (group < G)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = (c < C)[:, None] & (p <= K * K)[None, :]
    from_matrix = expand_ptr + row[:, None] * R + r[None, :]
    matrix = tl.load(from_matrix, mask=live[:, None] & (r < R)[None, :], other=0.0).to(hidden_ptr.dtype.element_ty)
    offset = tl.load(offset_ptr + row, mask=live, other=0.0).to(tl.float32)[:, None]
    table = tl.reshape(load_table(taps_ptr, bias_ptr, row, live, K, BLOCK_P), [BLOCK_C, BLOCK_G, BLOCK_P])
    dtable = tl.zeros([BLOCK_C, BLOCK_G, BLOCK_P], dtype=tl.float32)
    doffset = tl.zeros([BLOCK_C * BLOCK_G], dtype=tl.float32)
    for sample in range(split * samples, tl.minimum((split + 1) * samples, N)):
        n = tl.cast(sample, tl.int64)
        activation = load_activation(
            hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, weight_ptr, shift_ptr, n, R, K,
            BLOCK_R, BLOCK_P,
        )  # fmt: skip
        logits = tl.dot(matrix, activation, input_precision="ieee") + offset
        mixing = softmax(logits, group, G, BLOCK_C, BLOCK_G, BLOCK_P)
        grad = tl.load(dkernel_ptr + (n * C + c[:, None]) * (K * K + 1) + p[None, :], mask=known, other=0.0)
        of_table = mixing * grad.to(tl.float32)[:, None, :]
        dtable += of_table
        of_table *= table
        dlogits = of_table - mixing * tl.sum(of_table, 1)[:, None, :]
        dlogits = tl.reshape(dlogits, [BLOCK_C * BLOCK_G, BLOCK_P])
        doffset += tl.sum(dlogits, 1)
        where = dlogits_ptr + (n * G * C + row[:, None]) * (K * K + 1) + p[None, :]
        tl.store(where, dlogits.to(dlogits_ptr.dtype.element_ty), mask=live[:, None] & (p <= K * K)[None, :])
    taken = partial_ptr + split.to(tl.int64) * (G * C) * (K * K + 2)
    tl.store(taken + row, doffset, mask=live)
    taken += G * C
    found = tl.reshape(dtable, [BLOCK_C * BLOCK_G, BLOCK_P])
    tl.store(taken + row[:, None] * (K * K) + p[None, :], found, mask=live[:, None] & (p < K * K)[None, :])
    taken += (G * C) * (K * K)
    tl.store(taken + row, tl.sum(tl.where((p == K * K)[None, :], found, 0.0), 1), mask=live)


@triton.jit
def _expand_matrix_kernel(
    dlogits_ptr, hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, weight_ptr, shift_ptr,
    partial_ptr, N, R, rows, samples, K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of rows, split): of `samples` samples the gradient of expand, into partial[split, row, r].
    split = tl.program_id(1)
    r, p = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    row = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    dmatrix = tl.zeros([BLOCK_O, BLOCK_R], dtype=tl.float32)
    for sample in range(split * samples, tl.minimum((split + 1) * samples, N)):
        n = tl.cast(sample, tl.int64)
        activation = load_activation(
            hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, weight_ptr, shift_ptr, n, R, K,
            BLOCK_R, BLOCK_P,
        )  # fmt: skip
        where = (n * rows + row[:, None]) * (K * K + 1) + p[None, :]
        dlogits = tl.load(dlogits_ptr + where, mask=(row < rows)[:, None] & (p <= K * K)[None, :], other=0.0)
        dmatrix = tl.dot(dlogits, tl.trans(activation), dmatrix, input_precision="ieee")
    where = (split.to(tl.int64) * rows + row[:, None]) * R + r[None, :]
    tl.store(partial_ptr + where, dmatrix, mask=(row < rows)[:, None] & (r < R)[None, :])


@triton.jit
def _hidden_gradient_kernel(
    dlogits_ptr, hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, weight_ptr, shift_ptr,
    expand_ptr, dnormed_ptr, partial_ptr, R, rows, K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (sample): gradient of the norm's output, and the norm's sums of it: partial[sample, 0:2] of the taps'
    # positions, [sample, 2:4] of the bias's.
    n = tl.program_id(0).to(tl.int64)
    r, p = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    known = (p <= K * K)[None, :]
    grad = tl.zeros([BLOCK_R, BLOCK_P], dtype=tl.float32)
    for start in range(0, rows, BLOCK_O):
        row = start + tl.arange(0, BLOCK_O)
        live = (row < rows)[:, None]
        where = (n * rows + row[:, None]) * (K * K + 1) + p[None, :]
        dlogits = tl.load(dlogits_ptr + where, mask=live & known, other=0.0)
        matrix = tl.load(expand_ptr + row[:, None] * R + r[None, :], mask=live & (r < R)[None, :], other=0.0)
        grad = tl.dot(tl.trans(matrix.to(dlogits.dtype)), dlogits, grad, input_precision="ieee")
    xhat, _ = load_standardised(
        hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, n, R, K, BLOCK_R, BLOCK_P
    )
    live = r < R
    weight = tl.load(weight_ptr + r, mask=live, other=0.0)[:, None]
    shift = tl.load(shift_ptr + r, mask=live, other=0.0)[:, None]
    _, slope = gelu_with_gradient(xhat * weight + shift, hidden_ptr.dtype.element_ty)
    grad *= slope
    where = dnormed_ptr + (n * R + r[:, None]) * (K * K + 1) + p[None, :]
    tl.store(where, grad.to(dnormed_ptr.dtype.element_ty), mask=live[:, None] & known)
    of_taps = tl.where((p < K * K)[None, :], grad, 0.0)
    of_bias = tl.where((p == K * K)[None, :], grad, 0.0)
    here = partial_ptr + n * 4 * R + r
    tl.store(here, tl.sum(of_taps, 1), mask=live)
    tl.store(here + R, tl.sum(of_taps * xhat, 1), mask=live)
    tl.store(here + 2 * R, tl.sum(of_bias, 1), mask=live)
    tl.store(here + 3 * R, tl.sum(of_bias * xhat, 1), mask=live)


@triton.jit
def _norm_sums(taps_ptr, bias_ptr, inverse_taps, inverse_bias, r, live, of_taps):
    # A sum of the norm's gradient over its count, for the positions of taps and of the bias.
    taps = tl.load(taps_ptr + r, mask=live, other=0.0) * inverse_taps
    bias = tl.load(bias_ptr + r, mask=live, other=0.0) * inverse_bias
    return tl.where(of_taps, taps[:, None], bias[:, None])


@triton.jit
def _squeeze_gradient_kernel(
    dnormed_ptr, hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, weight_ptr, sums_taps_ptr,
    sums_bias_ptr, squeeze_ptr, pooled_ptr, dpooled_ptr, partial_ptr, inverse_taps, inverse_bias, N, C, R, samples,
    K: tl.constexpr, BATCH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of channels, split): of `samples` samples the gradient of the means, and into partial[split, r, c]
    # that of the matrix.
    split = tl.program_id(1)
    r, p = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    live = r < R
    of_taps = (p < K * K)[None, :]
    weight = tl.load(weight_ptr + r, mask=live, other=0.0)[:, None]
    inside = live[:, None] & (c < C)[None, :]
    low = hidden_ptr.dtype.element_ty
    matrix = tl.load(squeeze_ptr + r[:, None] * C + c[None, :], mask=inside, other=0.0).to(low)
    dmatrix = tl.zeros([BLOCK_R, BLOCK_C], dtype=tl.float32)
    for sample in range(split * samples, tl.minimum((split + 1) * samples, N)):
        n = tl.cast(sample, tl.int64)
        xhat, rstd = load_standardised(
            hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, n, R, K, BLOCK_R, BLOCK_P
        )
        here = dnormed_ptr + (n * R + r[:, None]) * (K * K + 1) + p[None, :]
        known = live[:, None] & (p <= K * K)[None, :]
        grad = tl.load(here, mask=known, other=0.0).to(tl.float32)
        if BATCH:
            one = _norm_sums(sums_taps_ptr, sums_bias_ptr, inverse_taps, inverse_bias, r, live, of_taps)
            two = _norm_sums(sums_taps_ptr + R, sums_bias_ptr + R, inverse_taps, inverse_bias, r, live, of_taps)
            grad -= one + xhat * two
        dhidden = tl.where(known, grad * (rstd * weight), 0.0).to(low)
        where = (n * C + c[:, None]) * (K * K + 1) + p[None, :]
        there = (c < C)[:, None] & (p <= K * K)[None, :]
        dpooled = tl.dot(tl.trans(matrix), dhidden, input_precision="ieee")
        tl.store(dpooled_ptr + where, dpooled.to(dpooled_ptr.dtype.element_ty), mask=there)
        pooled = tl.load(pooled_ptr + where, mask=there, other=0.0)
        dmatrix = tl.dot(dhidden, tl.trans(pooled), dmatrix, input_precision="ieee")
    here = partial_ptr + (split.to(tl.int64) * R + r[:, None]) * C + c[None, :]
    tl.store(here, dmatrix, mask=inside)


def generate_gradient(dkernels: Tensor, given: Generated, made_with: Generator) -> tuple[Tensor, Generator]:
    """Gradients of the means, and of the parameters, from that of the kernels, `[N, C, P]` in fp32."""
    _, pooled, hidden, of_taps, of_bias = given
    sizes = Sizes.of(pooled, made_with)
    n, c, r, groups, kernel = sizes
    whole, mixed, rows = sizes.whole(), sizes.mixed(), groups * c
    norm = (of_taps.mean, of_taps.rstd, of_bias.mean, of_bias.rstd, made_with.weight)

    blocks = triton.cdiv(c, mixed["BLOCK_C"])
    splits, samples = sizes.splits(blocks)
    parts = [rows, rows * kernel**2, rows]
    dlogits = torch.empty((n, rows, sizes.positions), dtype=pooled.dtype, device=pooled.device)
    partial = torch.empty((splits, sum(parts)), dtype=torch.float32, device=pooled.device)
    _mix_gradient_kernel[(blocks, splits)](
        dkernels, hidden, *norm, *made_with[2:], dlogits, partial, n, c, r, groups, samples, **whole, **mixed
    )
    mixing = partial.sum(0).split(parts)

    block_o = block(rows, ROWS)
    splits, samples = sizes.splits(triton.cdiv(rows, block_o))
    partial = torch.empty((splits, rows, r), dtype=torch.float32, device=pooled.device)
    _expand_matrix_kernel[(triton.cdiv(rows, block_o), splits)](
        dlogits, hidden, *norm, made_with.shift, partial, n, r, rows, samples, **whole, BLOCK_O=block_o
    )
    dexpand = partial.sum(0)

    dnormed = torch.empty_like(hidden)
    partial = torch.empty((n, 4, r), dtype=torch.float32, device=pooled.device)
    _hidden_gradient_kernel[(n,)](
        dlogits, hidden, *norm, made_with.shift, made_with.expand, dnormed, partial, r, rows, **whole,
        BLOCK_O=block(rows, CHANNELS),
    )  # fmt: skip
    sums = partial.sum(0)
    (sums_taps, inverse_taps), (sums_bias, inverse_bias) = of_taps.shared(sums[:2]), of_bias.shared(sums[2:])

    block_c = sizes.channels()
    splits, samples = sizes.splits(triton.cdiv(c, block_c))
    dpooled = torch.empty_like(pooled)
    partial = torch.empty((splits, r, c), dtype=torch.float32, device=pooled.device)
    _squeeze_gradient_kernel[(triton.cdiv(c, block_c), splits)](
        dnormed, hidden, *norm, sums_taps, sums_bias, made_with.squeeze, pooled, dpooled, partial, inverse_taps,
        inverse_bias, n, c, r, samples, BATCH=of_taps.of_batch, **whole, BLOCK_C=block_c, num_stages=STAGES,
    )  # fmt: skip
    dshift, dweight = sums[:2] + sums[2:]
    found = zip((partial.sum(0), dweight, dshift, dexpand, *mixing), made_with, strict=True)
    return dpooled, Generator(*(gradient.view_as(of).to(of.dtype) for gradient, of in found))
