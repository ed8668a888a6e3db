# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
"""The gradients of `streaming`: each kernel computes the probabilities of its block again.

    p = 2^(logits - lse)      ds = p (g v - sum_d g out)      dq = k ds      dk = q ds      dv = g p      dbias = ds

Three kernels: one block of queries for dq, one block of keys for dk and dv, one block of the bias's rows for its
gradient. Each adds in a fixed order, without atomics, so that two runs give the same bits.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from transxnet.kernels.common.tiles import sample_gap
from transxnet.kernels.osra.streaming import bias_block, launch_options, row_taps, tile_offsets
from transxnet.resample import cubic_taps

__all__ = ["stream_attention_gradient"]

PROGRAMS = 512
# Queries, keys and warps of a program: the largest that spill no registers on sm_80 and sm_90.
BLOCKS, BLOCKS_FP32 = (64, 64, 8), (32, 64, 8)
ROWS = 16
"""Rows of the table whose gradient a program sums."""


@triton.jit
def _logit_gradients(
    q, k, v, grad, lse, delta, bias, mask, scale,
):  # fmt: skip
    # Probabilities and gradient of the logits, both [BLOCK_L, BLOCK_M] fp32; q, k, v, grad are [D, ...].
    logits = (tl.dot(tl.trans(q), k, input_precision="ieee") * scale + bias) * 1.4426950408889634
    p = tl.where(mask, tl.exp2(logits - lse[:, None]), 0.0)
    return p, p * (tl.dot(tl.trans(grad), v, input_precision="ieee") - delta[:, None])


@triton.jit
def _stream_dq_kernel(
    q_ptr, kv_ptr, bias_ptr, tap_ptr, weight_ptr, out_ptr, grad_ptr, lse_ptr, delta_ptr, dq_ptr, L, M, rows, scale,
    out_gap, grad_gap, HEADS: tl.constexpr, D: tl.constexpr, INTERPOLATE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    # Program (sample and head, block of queries): dq, and the rows' sums of gradient times output.
    n, head, q_base, k_base, v_base = tile_offsets(tl.program_id(0), HEADS, D, L, M)
    queries = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)
    d = tl.arange(0, BLOCK_D)
    offsets = q_base + d[:, None] * L + queries[None, :]
    query_mask = (d < D)[:, None] & (queries < L)[None, :]
    q = tl.load(q_ptr + offsets, mask=query_mask, other=0.0)
    grad = tl.load(grad_ptr + n * grad_gap + offsets, mask=query_mask, other=0.0)
    out = tl.load(out_ptr + n * out_gap + offsets, mask=query_mask, other=0.0)
    delta = tl.sum(grad.to(tl.float32) * out.to(tl.float32), 0)
    row = tl.program_id(0).to(tl.int64) * L + queries
    tl.store(delta_ptr + row, delta, mask=queries < L)
    lse = tl.load(lse_ptr + row, mask=queries < L, other=0.0)
    dq = tl.zeros([BLOCK_L, BLOCK_D], dtype=tl.float32)
    for start in range(0, M, BLOCK_M):
        keys = start + tl.arange(0, BLOCK_M)
        key_mask = (d < D)[:, None] & (keys < M)[None, :]
        k = tl.load(kv_ptr + k_base + d[:, None] * M + keys[None, :], mask=key_mask, other=0.0)
        v = tl.load(kv_ptr + v_base + d[:, None] * M + keys[None, :], mask=key_mask, other=0.0)
        mask = (queries < L)[:, None] & (keys < M)[None, :]
        bias = bias_block(bias_ptr, tap_ptr, weight_ptr, head, queries, keys, mask, L, M, rows, INTERPOLATE)
        _, ds = _logit_gradients(q, k, v, grad, lse, delta, bias, mask, scale)
        dq += tl.dot((ds * scale).to(k.dtype), tl.trans(k), input_precision="ieee")
    tl.store(dq_ptr + offsets, tl.trans(dq).to(dq_ptr.dtype.element_ty), mask=query_mask)


@triton.jit
def _stream_dkv_kernel(
    q_ptr, kv_ptr, bias_ptr, tap_ptr, weight_ptr, grad_ptr, lse_ptr, delta_ptr, partial_ptr, N, L, M, rows, scale,
    grad_gap, queries_per_split, HEADS: tl.constexpr, D: tl.constexpr, INTERPOLATE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    # Program (sample and head, block of keys, split of the queries): partial sums of dk and dv.
    n, head, q_base, k_base, v_base = tile_offsets(tl.program_id(0), HEADS, D, L, M)
    keys = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(2)
    d = tl.arange(0, BLOCK_D)
    key_mask = (d < D)[:, None] & (keys < M)[None, :]
    key_offsets = d[:, None] * M + keys[None, :]
    k = tl.load(kv_ptr + k_base + key_offsets, mask=key_mask, other=0.0)
    v = tl.load(kv_ptr + v_base + key_offsets, mask=key_mask, other=0.0)
    dk = tl.zeros([BLOCK_D, BLOCK_M], dtype=tl.float32)
    dv = tl.zeros([BLOCK_D, BLOCK_M], dtype=tl.float32)
    end = tl.minimum((split + 1) * queries_per_split, L)
    for start in range(split * queries_per_split, end, BLOCK_L):
        queries = start + tl.arange(0, BLOCK_L)
        query_mask = (d < D)[:, None] & (queries < end)[None, :]
        offsets = q_base + d[:, None] * L + queries[None, :]
        q = tl.load(q_ptr + offsets, mask=query_mask, other=0.0)
        grad = tl.load(grad_ptr + n * grad_gap + offsets, mask=query_mask, other=0.0)
        row = tl.program_id(0).to(tl.int64) * L + queries
        lse = tl.load(lse_ptr + row, mask=queries < end, other=0.0)
        delta = tl.load(delta_ptr + row, mask=queries < end, other=0.0)
        mask = (queries < end)[:, None] & (keys < M)[None, :]
        bias = bias_block(bias_ptr, tap_ptr, weight_ptr, head, queries, keys, mask, L, M, rows, INTERPOLATE)
        p, ds = _logit_gradients(q, k, v, grad, lse, delta, bias, mask, scale)
        dv += tl.dot(grad, p.to(grad.dtype), input_precision="ieee")
        dk += tl.dot(q, (ds * scale).to(q.dtype), input_precision="ieee")
    partial = partial_ptr + split.to(tl.int64) * (N * 2 * HEADS * D * M)
    dtype = partial_ptr.dtype.element_ty
    tl.store(partial + k_base + key_offsets, dk.to(dtype), mask=key_mask)
    tl.store(partial + v_base + key_offsets, dv.to(dtype), mask=key_mask)


@triton.jit
def _stream_dbias_kernel(
    q_ptr, kv_ptr, bias_ptr, tap_ptr, weight_ptr, bound_ptr, grad_ptr, lse_ptr, delta_ptr, partial_ptr, N, L, M, rows,
    scale, grad_gap, samples, HEADS: tl.constexpr, D: tl.constexpr, INTERPOLATE: tl.constexpr, ROWS: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    # Program (block of the bias's rows, block of keys, head and split of the batch): the gradient of the bias over
    # `samples` samples. INTERPOLATE: the block is ROWS rows of the table, and bound_ptr has the first and last query
    # that take any of them; otherwise it is BLOCK_L rows, of a query each.
    head = tl.program_id(2) % HEADS
    split = tl.program_id(2) // HEADS
    block = tl.program_id(0)
    keys = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    key_mask = (d < D)[:, None] & (keys < M)[None, :]
    if INTERPOLATE:
        own = block * ROWS + tl.arange(0, ROWS)
        first = tl.load(bound_ptr + block)
        end = tl.load(bound_ptr + tl.num_programs(0) + block)
    else:
        own = block * BLOCK_L + tl.arange(0, BLOCK_L)
        first = block * BLOCK_L
        end = tl.minimum(first + BLOCK_L, L)
    total = tl.zeros([ROWS if INTERPOLATE else BLOCK_L, BLOCK_M], dtype=tl.float32)
    for n in range(split * samples, tl.minimum((split + 1) * samples, N)):
        pair = tl.cast(n, tl.int64) * HEADS + head
        k_base = (tl.cast(n, tl.int64) * 2 * HEADS + head) * D * M
        k_offsets = k_base + d[:, None] * M + keys[None, :]
        k = tl.load(kv_ptr + k_offsets, mask=key_mask, other=0.0)
        v = tl.load(kv_ptr + k_offsets + HEADS * D * M, mask=key_mask, other=0.0)
        for start in range(first, end, BLOCK_L):
            queries = start + tl.arange(0, BLOCK_L)
            query_mask = (d < D)[:, None] & (queries < end)[None, :]
            offsets = pair * D * L + d[:, None] * L + queries[None, :]
            q = tl.load(q_ptr + offsets, mask=query_mask, other=0.0)
            grad = tl.load(grad_ptr + tl.cast(n, tl.int64) * grad_gap + offsets, mask=query_mask, other=0.0)
            lse = tl.load(lse_ptr + pair * L + queries, mask=queries < end, other=0.0)
            delta = tl.load(delta_ptr + pair * L + queries, mask=queries < end, other=0.0)
            mask = (queries < end)[:, None] & (keys < M)[None, :]
            bias = bias_block(bias_ptr, tap_ptr, weight_ptr, head, queries, keys, mask, L, M, rows, INTERPOLATE)
            _, ds = _logit_gradients(q, k, v, grad, lse, delta, bias, mask, scale)
            if INTERPOLATE:
                share = tl.zeros([ROWS, BLOCK_L], dtype=tl.float32)
                for tap in range(4):
                    row = tl.load(tap_ptr + tap * L + queries, mask=queries < end, other=-1)
                    weight = tl.load(weight_ptr + tap * L + queries, mask=queries < end, other=0.0)
                    share += tl.where(own[:, None] == row[None, :], weight[None, :], 0.0)
                total += tl.dot(share, ds, input_precision=PRECISION)
            else:
                total += ds
    mask = (own < rows)[:, None] & (keys < M)[None, :]
    base = partial_ptr + (split * HEADS + head).to(tl.int64) * rows * M
    tl.store(base + own[:, None] * M + keys[None, :], total, mask=mask)


@functools.lru_cache(maxsize=64)
def _bounds(rows: int, queries: int, device: torch.device) -> Tensor:
    """Return the first query, and one past the last, that take a row of each block of `ROWS`: `[2, blocks]`, int32."""
    ends = cubic_taps(rows, queries, torch.float32, device).ends
    starts = torch.arange(0, rows, ROWS, dtype=ends.dtype, device="cpu")
    first = torch.searchsorted(ends[:, 1].contiguous(), starts)
    end = torch.searchsorted(ends[:, 0].contiguous(), starts + ROWS)
    return torch.stack((first, end)).to(device, torch.int32)


def stream_attention_gradient(
    q: Tensor, kv: Tensor, bias: Tensor, grad: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `q`, `kv` and `bias`.

    `grad`, the output's gradient, and `out` may be slices along the channels of contiguous tensors; `lse` is what
    `stream_attention` returned.
    """
    n, c, heads, keys, rows = q.shape[0], q.shape[1], bias.shape[1], bias.shape[3], bias.shape[2]
    queries, width = q.shape[2:].numel(), c // heads
    scale, gap = width**-0.5, sample_gap(grad)
    taps, weights = row_taps(bias, queries)
    interpolate, fp32 = rows != queries, q.dtype == torch.float32
    sizes = {"HEADS": heads, "D": width, "INTERPOLATE": interpolate}

    options = launch_options(width, *(BLOCKS_FP32 if fp32 else BLOCKS))
    dq, delta = torch.empty_like(q), torch.empty_like(lse)
    _stream_dq_kernel[(n * heads, triton.cdiv(queries, options["BLOCK_L"]))](
        q, kv, bias, taps, weights, out, grad, lse, delta, dq, queries, keys, rows, scale, sample_gap(out), gap,
        **sizes, **options,
    )  # fmt: skip

    steps, blocks = triton.cdiv(queries, options["BLOCK_L"]), triton.cdiv(keys, options["BLOCK_M"])
    each = triton.cdiv(steps, min(steps, triton.cdiv(PROGRAMS, n * heads * blocks))) * options["BLOCK_L"]
    splits = triton.cdiv(queries, each)
    partial = torch.empty((splits, *kv.shape), dtype=kv.dtype if splits == 1 else torch.float32, device=q.device)
    _stream_dkv_kernel[(n * heads, blocks, splits)](
        q, kv, bias, taps, weights, grad, lse, delta, partial, n, queries, keys, rows, scale, gap, each,
        **sizes, **options,
    )  # fmt: skip
    dkv = partial[0] if splits == 1 else partial.sum(0).to(kv.dtype)

    row_blocks = triton.cdiv(rows, ROWS if interpolate else options["BLOCK_L"])
    blocks = triton.cdiv(keys, options["BLOCK_M"])
    samples = triton.cdiv(n, min(n, triton.cdiv(PROGRAMS, row_blocks * blocks * heads)))
    splits = triton.cdiv(n, samples)
    partial = torch.empty((splits, *bias.shape), dtype=torch.float32, device=q.device)
    bounds = _bounds(rows, queries, bias.device) if interpolate else bias
    precision = "ieee" if fp32 else "tf32"
    _stream_dbias_kernel[(row_blocks, blocks, heads * splits)](
        q, kv, bias, taps, weights, bounds, grad, lse, delta, partial, n, queries, keys, rows, scale, gap, samples,
        **sizes, ROWS=ROWS, PRECISION=precision, **options,
    )  # fmt: skip
    return dq, dkv, partial.sum(0).to(bias.dtype)
