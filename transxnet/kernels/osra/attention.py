# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
"""OSRA's attention from every position to the keys, with a learned bias for each pair of positions.

    out = softmax(q^T k / sqrt(D) + bias) v      per sample and head; L queries, M keys, D channels a head

Source: TransXNet, arXiv 2310.19380, section 3 (OSRA). Up to `FEW_KEYS` keys of a head (49 at 224 px) fit in one block:
the kernels of this file, whose softmax needs no running maximum and whose backward does not need the output. More keys
go to `streaming`. Library kernels support neither a bias that takes a gradient nor head widths such as 19 or 28. The
bias gradient is summed over the batch by programs that loop over samples, without atomics, so that two runs give the
same bits.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from transxnet.attention import FEW_KEYS
from transxnet.kernels.common.tiles import block_size, sample_gap
from transxnet.kernels.osra.streaming import stream_attention
from transxnet.kernels.osra.streaming_gradients import stream_attention_gradient
from transxnet.resample import resize_bicubic

__all__ = ["attend", "attend_gradient", "attention", "attention_reference"]

PROGRAMS = 512
# (Queries, warps, stages) of a program: the largest that spill no registers on sm_80 and sm_90 in bf16.
FORWARD, BACKWARD, BIAS_GRADIENT = (64, 4, 3), (64, 8, 3), (32, 4, 2)


def attention_reference(q: Tensor, kv: Tensor, bias: Tensor) -> Tensor:
    """Return attention with every logit written out; shapes as in `attention`."""
    heads, queries = bias.shape[1], q.shape[2:].numel()
    if bias.shape[2] != queries:
        bias = resize_bicubic(bias, 2, queries)
    rows = q.flatten(2).unflatten(1, (heads, -1)).transpose(-1, -2)
    k, v = kv.flatten(2).unflatten(1, (2, heads, -1)).unbind(1)
    logits = (rows @ k) * (rows.shape[-1] ** -0.5) + bias
    out = torch.softmax(logits, dim=-1).to(v.dtype) @ v.transpose(-1, -2)
    return out.transpose(-1, -2).reshape(q.shape)


@triton.jit
def _probabilities(
    q, k, bias_ptr, head, queries, keys, L, M, scale, BLOCK_M: tl.constexpr,
):  # fmt: skip
    # Softmax over the keys, [BLOCK_L, BLOCK_M] fp32; `q` is [D, BLOCK_L], `k` is [D, BLOCK_M].
    mask = (queries < L)[:, None] & (keys < M)[None, :]
    bias = tl.load(bias_ptr + (head * L + queries[:, None]) * M + keys[None, :], mask=mask, other=0.0)
    logits = tl.dot(tl.trans(q), k, input_precision="ieee") * scale + bias.to(tl.float32)
    logits = tl.where((keys < M)[None, :], logits, float("-inf"))
    # exp(x) is 2 ** (x / ln 2). One reciprocal per row: divisions would take as long as the rest.
    p = tl.exp2(logits * 1.4426950408889634 - (tl.max(logits, 1) * 1.4426950408889634)[:, None])
    return p * (1.0 / tl.sum(p, 1))[:, None]


@triton.jit
def _attention_fwd_kernel(
    q_ptr, kv_ptr, bias_ptr, out_ptr, L, M, scale, sample_gap,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    # Program (block of queries, sample and head).
    n = (tl.program_id(1) // HEADS).to(tl.int64)
    head = tl.program_id(1) % HEADS
    queries = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    keys = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    q_base = (n * HEADS + head) * D * L
    k_base = (n * 2 * HEADS + head) * D * M
    v_base = k_base + HEADS * D * M
    query_mask = (d < D)[:, None] & (queries < L)[None, :]
    key_mask = (d < D)[:, None] & (keys < M)[None, :]
    q = tl.load(q_ptr + q_base + d[:, None] * L + queries[None, :], mask=query_mask, other=0.0)
    k = tl.load(kv_ptr + k_base + d[:, None] * M + keys[None, :], mask=key_mask, other=0.0)
    v = tl.load(kv_ptr + v_base + d[:, None] * M + keys[None, :], mask=key_mask, other=0.0)
    p = _probabilities(q, k, bias_ptr, head, queries, keys, L, M, scale, BLOCK_M)
    out = tl.dot(v, tl.trans(p.to(v.dtype)), input_precision="ieee")
    tl.store(
        out_ptr + n * sample_gap + q_base + d[:, None] * L + queries[None, :],
        out.to(out_ptr.dtype.element_ty),
        mask=query_mask,
    )


@triton.jit
def _logit_gradients(
    q, k, v, grad, bias_ptr, head, queries, keys, L, M, scale, BLOCK_M: tl.constexpr,
):  # fmt: skip
    # Probabilities and gradient of the logits, both [BLOCK_L, BLOCK_M] fp32.
    p = _probabilities(q, k, bias_ptr, head, queries, keys, L, M, scale, BLOCK_M)
    dp = tl.dot(tl.trans(grad), v, input_precision="ieee")
    return p, p * (dp - tl.sum(p * dp, 1)[:, None])


@triton.jit
def _attention_bwd_kernel(
    q_ptr, kv_ptr, bias_ptr, grad_ptr, dq_ptr, partial_ptr, N, L, M, scale, sample_gap, queries_per_split,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    # Program (sample and head, split of the queries): dq of its queries, and its partial sums of dk and dv.
    n = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS
    split = tl.program_id(1)
    keys = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    q_base = (n * HEADS + head) * D * L
    k_base = (n * 2 * HEADS + head) * D * M
    key_mask = (d < D)[:, None] & (keys < M)[None, :]
    key_offsets = d[:, None] * M + keys[None, :]
    k = tl.load(kv_ptr + k_base + key_offsets, mask=key_mask, other=0.0)
    v = tl.load(kv_ptr + k_base + HEADS * D * M + key_offsets, mask=key_mask, other=0.0)
    dk = tl.zeros([BLOCK_D, BLOCK_M], dtype=tl.float32)
    dv = tl.zeros([BLOCK_D, BLOCK_M], dtype=tl.float32)
    end = tl.minimum((split + 1) * queries_per_split, L)
    for start in range(split * queries_per_split, end, BLOCK_L):
        queries = start + tl.arange(0, BLOCK_L)
        query_mask = (d < D)[:, None] & (queries < end)[None, :]
        offsets = q_base + d[:, None] * L + queries[None, :]
        q = tl.load(q_ptr + offsets, mask=query_mask, other=0.0)
        grad = tl.load(grad_ptr + n * sample_gap + offsets, mask=query_mask, other=0.0)
        p, ds = _logit_gradients(q, k, v, grad, bias_ptr, head, queries, keys, L, M, scale, BLOCK_M)
        ds = (ds * scale).to(q.dtype)
        dv += tl.dot(grad, p.to(grad.dtype), input_precision="ieee")
        dk += tl.dot(q, ds, input_precision="ieee")
        dq = tl.dot(k, tl.trans(ds), input_precision="ieee")
        tl.store(dq_ptr + offsets, dq.to(dq_ptr.dtype.element_ty), mask=query_mask)
    partial = partial_ptr + split.to(tl.int64) * (N * 2 * HEADS * D * M) + k_base
    dtype = partial_ptr.dtype.element_ty
    tl.store(partial + key_offsets, dk.to(dtype), mask=key_mask)
    tl.store(partial + HEADS * D * M + key_offsets, dv.to(dtype), mask=key_mask)


@triton.jit
def _bias_gradient_kernel(
    q_ptr, kv_ptr, bias_ptr, grad_ptr, partial_ptr, N, L, M, scale, sample_gap, samples,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_L: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    # Program (block of queries, head, split of the batch): the logits' gradient summed over `samples` samples.
    head = tl.program_id(1)
    split = tl.program_id(2)
    queries = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    keys = tl.arange(0, BLOCK_M)
    d = tl.arange(0, BLOCK_D)
    query_mask = (d < D)[:, None] & (queries < L)[None, :]
    key_mask = (d < D)[:, None] & (keys < M)[None, :]
    total = tl.zeros([BLOCK_L, BLOCK_M], dtype=tl.float32)
    for n in range(split * samples, tl.minimum((split + 1) * samples, N)):
        row = tl.cast(n, tl.int64)
        offsets = (row * HEADS + head) * D * L + d[:, None] * L + queries[None, :]
        k_offsets = (row * 2 * HEADS + head) * D * M + d[:, None] * M + keys[None, :]
        q = tl.load(q_ptr + offsets, mask=query_mask, other=0.0)
        grad = tl.load(grad_ptr + row * sample_gap + offsets, mask=query_mask, other=0.0)
        k = tl.load(kv_ptr + k_offsets, mask=key_mask, other=0.0)
        v = tl.load(kv_ptr + k_offsets + HEADS * D * M, mask=key_mask, other=0.0)
        _, ds = _logit_gradients(q, k, v, grad, bias_ptr, head, queries, keys, L, M, scale, BLOCK_M)
        total += ds
    mask = (queries < L)[:, None] & (keys < M)[None, :]
    base = partial_ptr + (split * HEADS + head).to(tl.int64) * L * M
    tl.store(base + queries[:, None] * M + keys[None, :], total, mask=mask)


def _blocks(channels: int, keys: int, queries: int, warps: int, stages: int) -> dict[str, int]:
    return {
        "BLOCK_D": block_size(channels),
        "BLOCK_L": queries,
        "BLOCK_M": block_size(keys),
        "num_warps": warps,
        "num_stages": stages,
    }


def attend(q: Tensor, kv: Tensor, bias: Tensor, out: Tensor) -> Tensor | None:
    """Write to `out`, a slice along the channels of a contiguous tensor, what `attention` returns.

    With more than `FEW_KEYS` keys it returns one number a row, which the gradient needs.
    """
    if bias.shape[3] > FEW_KEYS:
        return stream_attention(q, kv, bias, out)
    n, c, queries, keys, heads = q.shape[0], q.shape[1], bias.shape[2], bias.shape[3], bias.shape[1]
    blocks = _blocks(c // heads, keys, *FORWARD)
    _attention_fwd_kernel[(triton.cdiv(queries, blocks["BLOCK_L"]), n * heads)](
        q, kv, bias, out, queries, keys, (c // heads) ** -0.5, sample_gap(out), HEADS=heads, D=c // heads, **blocks
    )
    return None


def attend_gradient(
    q: Tensor, kv: Tensor, bias: Tensor, grad: Tensor, out: Tensor | None, rows: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `q`, `kv` and `bias`.

    `grad`, the output's gradient, may be a slice along the channels of a contiguous tensor. With many keys `rows` is
    what `attend` returned, and `out` what it wrote.
    """
    if rows is not None:
        assert out is not None
        return stream_attention_gradient(q, kv, bias, grad, out, rows)
    n, c, queries, keys, heads = q.shape[0], q.shape[1], bias.shape[2], bias.shape[3], bias.shape[1]
    scale = (c // heads) ** -0.5

    blocks = _blocks(c // heads, keys, *BACKWARD)
    steps = triton.cdiv(queries, blocks["BLOCK_L"])
    each = triton.cdiv(steps, min(steps, triton.cdiv(PROGRAMS, n * heads))) * blocks["BLOCK_L"]
    splits = triton.cdiv(queries, each)
    dq = torch.empty_like(q)
    partial = torch.empty((splits, *kv.shape), dtype=kv.dtype if splits == 1 else torch.float32, device=q.device)
    _attention_bwd_kernel[(n * heads, splits)](
        q,
        kv,
        bias,
        grad,
        dq,
        partial,
        n,
        queries,
        keys,
        scale,
        sample_gap(grad),
        each,
        HEADS=heads,
        D=c // heads,
        **blocks,
    )
    dkv = partial[0] if splits == 1 else partial.sum(0).to(kv.dtype)

    blocks = _blocks(c // heads, keys, *BIAS_GRADIENT)
    steps = triton.cdiv(queries, blocks["BLOCK_L"])
    samples = triton.cdiv(n, min(n, triton.cdiv(PROGRAMS, steps * heads)))
    splits = triton.cdiv(n, samples)
    partial = torch.empty((splits, *bias.shape), dtype=torch.float32, device=q.device)
    _bias_gradient_kernel[(steps, heads, splits)](
        q,
        kv,
        bias,
        grad,
        partial,
        n,
        queries,
        keys,
        scale,
        sample_gap(grad),
        samples,
        HEADS=heads,
        D=c // heads,
        **blocks,
    )
    return dq, dkv, partial.sum(0).to(bias.dtype)


class _AttentionFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, bias: Tensor) -> Tensor:
        out = torch.empty_like(q)
        rows = attend(q, kv, bias, out)
        ctx.save_for_backward(q, kv, bias, None if rows is None else out, rows)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, kv, bias, out, rows = ctx.saved_tensors
        return attend_gradient(q, kv, bias, grad_outputs[0].contiguous(), out, rows)


def attention(q: Tensor, kv: Tensor, bias: Tensor) -> Tensor:
    """Return attention of `q` `[N, C, H, W]` to the keys and values `kv` `[N, 2 C, h, w]`; `[N, C, H, W]`.

    `bias` is `[1, heads, H W, h w]`, or with more than `FEW_KEYS` keys `[1, heads, rows, h w]`, whose rows are
    interpolated. `q` and `kv` share one dtype, fp32, bf16 or fp16; logits and softmax are in fp32.
    """
    return _AttentionFunction.apply(q.contiguous(), kv.contiguous(), bias.contiguous())
