# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""The gradients of IDConv's kernel generator (see `generator`).

With W the table of taps and biases, p the softmax over g and d the kernels' gradient, per sample, channel and position:

    d logits = p (d W - sum over g of p d W)      d W = sum over samples of p d

The gradient flows from the logits to the norm's output, over which the norm's two sums are taken, then to `hidden` and
to the means.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from transxnet.kernels.common.activation import gelu_with_gradient
from transxnet.kernels.common.tiles import block_size
from transxnet.kernels.idconv.generator import (
    CHANNELS,
    ROWS,
    GeneratorOutput,
    GeneratorParameters,
    GeneratorSizes,
    load_activation,
    load_standardised,
    load_taps_and_bias,
    softmax,
)

__all__ = ["generate_kernels_gradient"]

# Pipeline stages of `_squeeze_gradient_kernel`: the most that spill no registers on sm_80 with triton 3.6.
STAGES = 2


@triton.jit
def _mix_gradient_kernel(
    dkernel_ptr, hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, weight_ptr, shift_ptr,
    expand_ptr, offset_ptr, taps_ptr, bias_ptr, dlogits_ptr, partial_ptr, N, C, R, G, samples, K: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of channels, split): the logits' gradient of `samples` samples, and their sums: each split has a
    # row of partial with the gradients of offset [G C], taps [G C, K * K] and bias [G C].
    split = tl.program_id(1)
    r, p, rows = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_C * BLOCK_G)
    channel, group = tl.program_id(0) * BLOCK_C + rows // BLOCK_G, rows % BLOCK_G
    row, in_range = group * C + channel, (channel < C) & (group < G)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = (c < C)[:, None] & (p <= K * K)[None, :]
    from_matrix = expand_ptr + row[:, None] * R + r[None, :]
    matrix = tl.load(from_matrix, mask=in_range[:, None] & (r < R)[None, :], other=0.0).to(hidden_ptr.dtype.element_ty)
    offset = tl.load(offset_ptr + row, mask=in_range, other=0.0).to(tl.float32)[:, None]
    table = tl.reshape(load_taps_and_bias(taps_ptr, bias_ptr, row, in_range, K, BLOCK_P), [BLOCK_C, BLOCK_G, BLOCK_P])
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
        grad = tl.load(dkernel_ptr + (n * C + c[:, None]) * (K * K + 1) + p[None, :], mask=mask, other=0.0)
        weighted = mixing * grad.to(tl.float32)[:, None, :]
        dtable += weighted
        weighted *= table
        dlogits = weighted - mixing * tl.sum(weighted, 1)[:, None, :]
        dlogits = tl.reshape(dlogits, [BLOCK_C * BLOCK_G, BLOCK_P])
        doffset += tl.sum(dlogits, 1)
        offsets = dlogits_ptr + (n * G * C + row[:, None]) * (K * K + 1) + p[None, :]
        tl.store(offsets, dlogits.to(dlogits_ptr.dtype.element_ty), mask=in_range[:, None] & (p <= K * K)[None, :])
    out_ptr = partial_ptr + split.to(tl.int64) * (G * C) * (K * K + 2)
    tl.store(out_ptr + row, doffset, mask=in_range)
    out_ptr += G * C
    result = tl.reshape(dtable, [BLOCK_C * BLOCK_G, BLOCK_P])
    tl.store(out_ptr + row[:, None] * (K * K) + p[None, :], result, mask=in_range[:, None] & (p < K * K)[None, :])
    out_ptr += (G * C) * (K * K)
    tl.store(out_ptr + row, tl.sum(tl.where((p == K * K)[None, :], result, 0.0), 1), mask=in_range)


@triton.jit
def _expand_matrix_kernel(
    dlogits_ptr, hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, weight_ptr, shift_ptr,
    partial_ptr, N, R, rows, samples, K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of rows, split): the gradient of expand summed over `samples` samples, to partial[split, row, r].
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
        offsets = (n * rows + row[:, None]) * (K * K + 1) + p[None, :]
        dlogits = tl.load(dlogits_ptr + offsets, mask=(row < rows)[:, None] & (p <= K * K)[None, :], other=0.0)
        dmatrix = tl.dot(dlogits, tl.trans(activation), dmatrix, input_precision="ieee")
    offsets = (split.to(tl.int64) * rows + row[:, None]) * R + r[None, :]
    tl.store(partial_ptr + offsets, dmatrix, mask=(row < rows)[:, None] & (r < R)[None, :])


@triton.jit
def _hidden_gradient_kernel(
    dlogits_ptr, hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, weight_ptr, shift_ptr,
    expand_ptr, dnormed_ptr, partial_ptr, R, rows, K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (sample n): the gradient of the norm's output, and its two sums: over the taps' positions to partial[n,
    # 0:2], over the bias's position to partial[n, 2:4].
    n = tl.program_id(0).to(tl.int64)
    r, p = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    mask = (p <= K * K)[None, :]
    grad = tl.zeros([BLOCK_R, BLOCK_P], dtype=tl.float32)
    for start in range(0, rows, BLOCK_O):
        row = start + tl.arange(0, BLOCK_O)
        in_range = (row < rows)[:, None]
        offsets = (n * rows + row[:, None]) * (K * K + 1) + p[None, :]
        dlogits = tl.load(dlogits_ptr + offsets, mask=in_range & mask, other=0.0)
        matrix = tl.load(expand_ptr + row[:, None] * R + r[None, :], mask=in_range & (r < R)[None, :], other=0.0)
        grad = tl.dot(tl.trans(matrix.to(dlogits.dtype)), dlogits, grad, input_precision="ieee")
    xhat, _ = load_standardised(
        hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, n, R, K, BLOCK_R, BLOCK_P
    )
    in_range = r < R
    weight = tl.load(weight_ptr + r, mask=in_range, other=0.0)[:, None]
    shift = tl.load(shift_ptr + r, mask=in_range, other=0.0)[:, None]
    _, slope = gelu_with_gradient(xhat * weight + shift, hidden_ptr.dtype.element_ty)
    grad *= slope
    offsets = dnormed_ptr + (n * R + r[:, None]) * (K * K + 1) + p[None, :]
    tl.store(offsets, grad.to(dnormed_ptr.dtype.element_ty), mask=in_range[:, None] & mask)
    taps_grad = tl.where((p < K * K)[None, :], grad, 0.0)
    bias_grad = tl.where((p == K * K)[None, :], grad, 0.0)
    pointers = partial_ptr + n * 4 * R + r
    tl.store(pointers, tl.sum(taps_grad, 1), mask=in_range)
    tl.store(pointers + R, tl.sum(taps_grad * xhat, 1), mask=in_range)
    tl.store(pointers + 2 * R, tl.sum(bias_grad, 1), mask=in_range)
    tl.store(pointers + 3 * R, tl.sum(bias_grad * xhat, 1), mask=in_range)


@triton.jit
def _norm_sums(taps_ptr, bias_ptr, inverse_taps, inverse_bias, r, in_range, is_tap):
    # A sum for the norm's gradient divided by its count, [R, P]: the taps' value at the taps' positions, the bias's at
    # the last.
    taps = tl.load(taps_ptr + r, mask=in_range, other=0.0) * inverse_taps
    bias = tl.load(bias_ptr + r, mask=in_range, other=0.0) * inverse_bias
    return tl.where(is_tap, taps[:, None], bias[:, None])


@triton.jit
def _squeeze_gradient_kernel(
    dnormed_ptr, hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, weight_ptr, sums_taps_ptr,
    sums_bias_ptr, squeeze_ptr, pooled_ptr, dpooled_ptr, partial_ptr, inverse_taps, inverse_bias, N, C, R, samples,
    K: tl.constexpr, BATCH_STATS: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of channels, split): the means' gradient of `samples` samples, and the gradient of squeeze summed
    # over them, to partial[split, r, c].
    split = tl.program_id(1)
    r, p = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    in_range = r < R
    is_tap = (p < K * K)[None, :]
    weight = tl.load(weight_ptr + r, mask=in_range, other=0.0)[:, None]
    inside = in_range[:, None] & (c < C)[None, :]
    dtype = hidden_ptr.dtype.element_ty
    matrix = tl.load(squeeze_ptr + r[:, None] * C + c[None, :], mask=inside, other=0.0).to(dtype)
    dmatrix = tl.zeros([BLOCK_R, BLOCK_C], dtype=tl.float32)
    for sample in range(split * samples, tl.minimum((split + 1) * samples, N)):
        n = tl.cast(sample, tl.int64)
        xhat, rstd = load_standardised(
            hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, n, R, K, BLOCK_R, BLOCK_P
        )
        pointers = dnormed_ptr + (n * R + r[:, None]) * (K * K + 1) + p[None, :]
        mask = in_range[:, None] & (p <= K * K)[None, :]
        grad = tl.load(pointers, mask=mask, other=0.0).to(tl.float32)
        if BATCH_STATS:
            mean_grad = _norm_sums(sums_taps_ptr, sums_bias_ptr, inverse_taps, inverse_bias, r, in_range, is_tap)
            mean_grad_xhat = _norm_sums(
                sums_taps_ptr + R, sums_bias_ptr + R, inverse_taps, inverse_bias, r, in_range, is_tap
            )
            grad -= mean_grad + xhat * mean_grad_xhat
        dhidden = tl.where(mask, grad * (rstd * weight), 0.0).to(dtype)
        offsets = (n * C + c[:, None]) * (K * K + 1) + p[None, :]
        pooled_mask = (c < C)[:, None] & (p <= K * K)[None, :]
        dpooled = tl.dot(tl.trans(matrix), dhidden, input_precision="ieee")
        tl.store(dpooled_ptr + offsets, dpooled.to(dpooled_ptr.dtype.element_ty), mask=pooled_mask)
        pooled = tl.load(pooled_ptr + offsets, mask=pooled_mask, other=0.0)
        dmatrix = tl.dot(dhidden, tl.trans(pooled), dmatrix, input_precision="ieee")
    pointers = partial_ptr + (split.to(tl.int64) * R + r[:, None]) * C + c[None, :]
    tl.store(pointers, dmatrix, mask=inside)


def generate_kernels_gradient(
    dkernels: Tensor, generated: GeneratorOutput, parameters: GeneratorParameters
) -> tuple[Tensor, GeneratorParameters]:
    """Return the gradients of the means and of the parameters, given that of the kernels, `[N, C, P]` in fp32."""
    _, pooled, hidden, taps_stats, bias_stats = generated
    sizes = GeneratorSizes.of(pooled, parameters)
    n, c, r, groups, kernel = sizes
    sample_tile, mix_tile, rows = sizes.sample_tile(), sizes.mix_tile(), groups * c
    norm = (taps_stats.mean, taps_stats.rstd, bias_stats.mean, bias_stats.rstd, parameters.weight)

    blocks = triton.cdiv(c, mix_tile["BLOCK_C"])
    splits, samples = sizes.splits(blocks)
    lengths = [rows, rows * kernel**2, rows]
    dlogits = torch.empty((n, rows, sizes.positions), dtype=pooled.dtype, device=pooled.device)
    partial = torch.empty((splits, sum(lengths)), dtype=torch.float32, device=pooled.device)
    _mix_gradient_kernel[(blocks, splits)](
        dkernels, hidden, *norm, *parameters[2:], dlogits, partial, n, c, r, groups, samples, **sample_tile, **mix_tile
    )
    dmixing = partial.sum(0).split(lengths)

    block_o = block_size(rows, ROWS)
    splits, samples = sizes.splits(triton.cdiv(rows, block_o))
    partial = torch.empty((splits, rows, r), dtype=torch.float32, device=pooled.device)
    _expand_matrix_kernel[(triton.cdiv(rows, block_o), splits)](
        dlogits, hidden, *norm, parameters.shift, partial, n, r, rows, samples, **sample_tile, BLOCK_O=block_o
    )
    dexpand = partial.sum(0)

    dnormed = torch.empty_like(hidden)
    partial = torch.empty((n, 4, r), dtype=torch.float32, device=pooled.device)
    _hidden_gradient_kernel[(n,)](
        dlogits, hidden, *norm, parameters.shift, parameters.expand, dnormed, partial, r, rows, **sample_tile,
        BLOCK_O=block_size(rows, CHANNELS),
    )  # fmt: skip
    sums = partial.sum(0)
    sums_taps, inverse_taps = taps_stats.sum_over_ranks(sums[:2])
    sums_bias, inverse_bias = bias_stats.sum_over_ranks(sums[2:])

    block_c = sizes.block_c()
    splits, samples = sizes.splits(triton.cdiv(c, block_c))
    dpooled = torch.empty_like(pooled)
    partial = torch.empty((splits, r, c), dtype=torch.float32, device=pooled.device)
    _squeeze_gradient_kernel[(triton.cdiv(c, block_c), splits)](
        dnormed, hidden, *norm, sums_taps, sums_bias, parameters.squeeze, pooled, dpooled, partial, inverse_taps,
        inverse_bias, n, c, r, samples, BATCH_STATS=taps_stats.from_batch, **sample_tile, BLOCK_C=block_c,
        num_stages=STAGES,
    )  # fmt: skip
    dshift, dweight = sums[:2] + sums[2:]
    result = zip((partial.sum(0), dweight, dshift, dexpand, *dmixing), parameters, strict=True)
    return dpooled, GeneratorParameters(
        *(gradient.view_as(parameter).to(parameter.dtype) for gradient, parameter in result)
    )
