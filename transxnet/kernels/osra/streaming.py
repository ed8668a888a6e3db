# ruff: noqa: ANN001, ANN201, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
"""OSRA's attention to any number of keys: the forward, and what its gradients share with it.

    out = softmax(q^T k / sqrt(D) + bias) v      per sample and head; L queries, M keys, D channels a head

The keys come in blocks. A running maximum and a running sum correct what was added before (online softmax), and the
backward computes the probabilities again from one number a row: the logarithm of its sum. The position bias of L x M
values is not written out. Its rows, `[heads, rows, M]`, are those of the table, and four of them are interpolated for
each query where the bias is used. Source: Milakov and Gimelshein, arXiv 1805.02867; Dao et al., arXiv 2205.14135.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from transxnet.kernels.common.tiles import block_size, sample_gap
from transxnet.resample import cubic_taps

__all__ = ["bias_block", "launch_options", "row_taps", "stream_attention", "tile_offsets"]

# Queries, keys and warps of a program: the largest that spill no registers on sm_80 and sm_90.
FORWARD = (64, 64, 8)


@triton.jit
def tile_offsets(index, HEADS: tl.constexpr, D: tl.constexpr, L, M):
    """Return sample, head and the first offsets of queries, keys and values of the pair number `index`, int64."""
    n = (index // HEADS).to(tl.int64)
    head = index % HEADS
    k_base = (n * 2 * HEADS + head) * D * M
    return n, head, (n * HEADS + head) * D * L, k_base, k_base + HEADS * D * M


@triton.jit
def bias_block(
    bias_ptr, tap_ptr, weight_ptr, head, queries, keys, mask, L, M, rows, INTERPOLATE: tl.constexpr,
):  # fmt: skip
    """Return the bias of `queries` x `keys`, fp32: read, or interpolated from four rows of the table."""
    base = bias_ptr + head.to(tl.int64) * rows * M
    if INTERPOLATE:
        bias = tl.zeros(mask.shape, dtype=tl.float32)
        for tap in range(4):
            row = tl.load(tap_ptr + tap * L + queries, mask=queries < L, other=0)
            weight = tl.load(weight_ptr + tap * L + queries, mask=queries < L, other=0.0)
            values = tl.load(base + row[:, None] * M + keys[None, :], mask=mask, other=0.0)
            bias += weight[:, None] * values.to(tl.float32)
    else:
        bias = tl.load(base + queries[:, None] * M + keys[None, :], mask=mask, other=0.0).to(tl.float32)
    return bias


@triton.jit
def _stream_fwd_kernel(
    q_ptr, kv_ptr, bias_ptr, tap_ptr, weight_ptr, out_ptr, lse_ptr, L, M, rows, scale, sample_gap,
    HEADS: tl.constexpr, D: tl.constexpr, INTERPOLATE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    # Program (sample and head, block of queries): its output and the base-2 logarithm of its rows' sums.
    n, head, q_base, k_base, v_base = tile_offsets(tl.program_id(0), HEADS, D, L, M)
    queries = tl.program_id(1) * BLOCK_L + tl.arange(0, BLOCK_L)
    d = tl.arange(0, BLOCK_D)
    offsets = q_base + d[:, None] * L + queries[None, :]
    query_mask = (d < D)[:, None] & (queries < L)[None, :]
    q = tl.load(q_ptr + offsets, mask=query_mask, other=0.0)
    largest = tl.full([BLOCK_L], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK_L], dtype=tl.float32)
    out = tl.zeros([BLOCK_L, BLOCK_D], dtype=tl.float32)
    for start in range(0, M, BLOCK_M):
        keys = start + tl.arange(0, BLOCK_M)
        key_mask = (d < D)[:, None] & (keys < M)[None, :]
        k = tl.load(kv_ptr + k_base + d[:, None] * M + keys[None, :], mask=key_mask, other=0.0)
        mask = (queries < L)[:, None] & (keys < M)[None, :]
        bias = bias_block(bias_ptr, tap_ptr, weight_ptr, head, queries, keys, mask, L, M, rows, INTERPOLATE)
        logits = (tl.dot(tl.trans(q), k, input_precision="ieee") * scale + bias) * 1.4426950408889634
        logits = tl.where((keys < M)[None, :], logits, float("-inf"))
        new = tl.maximum(largest, tl.max(logits, 1))
        p = tl.exp2(logits - new[:, None])
        correction = tl.exp2(largest - new)
        total = total * correction + tl.sum(p, 1)
        v = tl.load(kv_ptr + v_base + d[:, None] * M + keys[None, :], mask=key_mask, other=0.0)
        out = out * correction[:, None] + tl.dot(p.to(v.dtype), tl.trans(v), input_precision="ieee")
        largest = new
    out = out * (1.0 / total)[:, None]
    tl.store(out_ptr + n * sample_gap + offsets, tl.trans(out).to(out_ptr.dtype.element_ty), mask=query_mask)
    tl.store(lse_ptr + tl.program_id(0).to(tl.int64) * L + queries, largest + tl.log2(total), mask=queries < L)


def launch_options(channels: int, queries: int, keys: int, warps: int) -> dict[str, int]:
    """Return the sizes of a program's blocks and its warps, for heads of `channels`; prefetching would spill."""
    return {"BLOCK_D": block_size(channels), "BLOCK_L": queries, "BLOCK_M": keys, "num_warps": warps, "num_stages": 1}


def row_taps(bias: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """Return the rows `[4, queries]`, int32, and weights, fp32, that interpolate `bias`; themselves if it has all."""
    return (bias, bias) if bias.shape[2] == queries else _row_taps(bias.shape[2], queries, bias.device)


@functools.lru_cache(maxsize=64)
def _row_taps(rows: int, queries: int, device: torch.device) -> tuple[Tensor, Tensor]:
    taps = cubic_taps(rows, queries, torch.float32, device)
    return taps.indices.mT.to(torch.int32).contiguous(), taps.weights.mT.contiguous()


def stream_attention(q: Tensor, kv: Tensor, bias: Tensor, out: Tensor) -> Tensor:
    """Write attention to `out`, a slice along the channels of a contiguous tensor.

    Shapes are those of `attention`; `bias` is `[1, heads, rows, keys]`. Returns the base-2 logarithm of each row's sum,
    `[N, heads, L]`, fp32, for the backward.
    """
    n, c, heads, keys = q.shape[0], q.shape[1], bias.shape[1], bias.shape[3]
    queries = q.shape[2:].numel()
    taps, weights = row_taps(bias, queries)
    lse = torch.empty((n, heads, queries), dtype=torch.float32, device=q.device)
    options = launch_options(c // heads, *FORWARD)
    _stream_fwd_kernel[(n * heads, triton.cdiv(queries, options["BLOCK_L"]))](
        q, kv, bias, taps, weights, out, lse, queries, keys, bias.shape[2], (c // heads) ** -0.5, sample_gap(out),
        HEADS=heads, D=c // heads, INTERPOLATE=bias.shape[2] != queries, **options,
    )  # fmt: skip
    return lse
