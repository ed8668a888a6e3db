"""OSRA's attention in plain PyTorch: `softmax(q^T k / sqrt(D) + bias) v` for each sample and head.

Source: TransXNet, arXiv 2310.19380, section 3 (OSRA). With many keys (images above 256 px) the probabilities would be
the largest tensors of the network: 2 GB an image at 800 x 1344. So there they are computed for a chunk of the queries
at a time, and computed again in the backward, which keeps the queries, keys and values alone. Only a small attention
keeps its probabilities. The position bias is not written out either: each chunk interpolates its own rows.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from transxnet.resample import BLOCK, at_least_fp32, cubic_taps, resize_bicubic, without_autocast

__all__ = ["FEW_KEYS", "attention", "stage_bias"]

FEW_KEYS = 64
"""Up to this number of keys (256 px) the probabilities are kept, and the position bias is written out."""
CHUNK = {"cpu": 2**19}
"""Number of logits of a chunk: on a CPU they stay in the cache."""
CHUNK_ELSEWHERE = 2**24
KEPT = 2**21
"""Up to this number of logits an attention keeps its probabilities, 8 MB in fp32, instead of computing them again."""


def stage_bias(table: Tensor, queries: int, keys: int) -> Tensor:
    """Return a stage's position bias for `attention`, from its table `[1, heads, rows, columns]`.

    It is `[1, heads, queries, keys]`; or with more than `FEW_KEYS` keys, if the table is for another image size,
    `[1, heads, rows, keys]`, whose rows are interpolated where they are used. It is always a new tensor.
    """
    # An export for any size has symbols here; comparing them would leave out the table's own size.
    if isinstance(queries, int) and table.shape[2:] == (queries, keys):
        return table.clone()
    bias = resize_bicubic(table, 3, keys)
    write_out = keys <= FEW_KEYS or torch.compiler.is_compiling()
    return resize_bicubic(bias, 2, queries) if write_out else bias


def attention(q: Tensor, kv: Tensor, bias: Tensor) -> Tensor:
    """Return attention of the queries `q` `[N, C, H, W]` to the keys and values `kv` `[N, 2 C, h, w]`: `[N, C, H, W]`.

    `bias`, `[1, heads, H W, h w]` or with rows to interpolate, is that of `stage_bias`. `q` and `kv` share a dtype.
    """
    if bias.shape[3] > FEW_KEYS and not torch.compiler.is_compiling():
        return _BoundedFunction.apply(q, kv, bias)
    heads = bias.shape[1]
    rows = q.flatten(2).unflatten(1, (heads, -1)).transpose(-1, -2)
    k, v = kv.flatten(2).unflatten(1, (2, heads, -1)).unbind(1)
    logits = (rows @ k) * (rows.shape[-1] ** -0.5) + bias
    out = torch.softmax(logits, dim=-1) @ v.transpose(-1, -2)
    return out.transpose(-1, -2).reshape(q.shape)


class _Chunks:
    """The inputs of attention, split into heads, and cut into chunks of samples and queries."""

    def __init__(self, q: Tensor, kv: Tensor, bias: Tensor) -> None:
        heads = bias.shape[1]
        self.queries = q.flatten(2).unflatten(1, (heads, -1)).mT
        """`[N, heads, L, D]`"""
        self.keys, self.values = kv.flatten(2).unflatten(1, (2, heads, -1)).unbind(1)
        """`[N, heads, D, M]`"""
        self.bias = bias[0].to(at_least_fp32(bias.dtype))
        self.scale = self.queries.shape[-1] ** -0.5
        self.number = self.queries.shape[2]
        per_query = heads * self.keys.shape[-1]
        size = CHUNK.get(q.device.type, CHUNK_ELSEWHERE)
        self.length = max(1, size // (per_query * BLOCK)) * BLOCK
        self.samples = max(1, size // (per_query * min(self.length, self.number)))
        self.keeps = len(q) * per_query * self.number <= KEPT
        written_out = bias.shape[2] == self.number
        self.taps = None if written_out else cubic_taps(bias.shape[2], self.number, self.bias.dtype, bias.device)

    def spans(self) -> Iterator[slice]:
        """Yield the chunks of the queries."""
        for start in range(0, self.number, self.length):
            yield slice(start, min(start + self.length, self.number))

    def groups(self) -> Iterator[slice]:
        """Yield the groups of samples."""
        for start in range(0, len(self.queries), self.samples):
            yield slice(start, start + self.samples)

    def own_bias(self, span: slice) -> Tensor:
        """Return the bias of the queries of `span`, `[heads, queries, M]`."""
        return self.taps.interpolate(self.bias, span.start, span.stop) if self.taps else self.bias[:, span]

    def add_bias_gradient(self, out: Tensor, own: Tensor, span: slice) -> None:
        """Add to `out`, the gradient of the bias, that of the queries of `span`."""
        if self.taps:
            self.taps.add_gradient(out, own, span.start)
        else:
            out[:, span] += own

    def all_probabilities(self) -> Iterator[Tensor]:
        """Yield the probabilities `[samples, heads, queries, M]` of each span's groups, in fp32 at least."""
        for span in self.spans():
            bias = self.own_bias(span)
            for group in self.groups():
                logits = self.queries[group, :, span] @ self.keys[group]
                yield torch.softmax(torch.add(bias, logits, alpha=self.scale), dim=-1)


def _empty_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an empty tensor shaped like `x` `[N, C, H, W]`, channels-last if `x` is."""
    is_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    layout = torch.channels_last if is_last else torch.contiguous_format
    return torch.empty(x.shape, dtype=dtype, device=x.device, memory_format=layout)


class _BoundedFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, kv: Tensor, bias: Tensor) -> Tensor:
        kept = []
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        with without_autocast(q):
            chunks = _Chunks(q, kv, bias)
            by_head = out.flatten(2).unflatten(1, (bias.shape[1], -1))
            probabilities = chunks.all_probabilities()
            for span, group in itertools.product(chunks.spans(), chunks.groups()):
                p = next(probabilities)
                if chunks.keeps:
                    kept.append(p)
                by_head[group, :, :, span] = (p.to(q.dtype) @ chunks.values[group].mT).mT
        ctx.save_for_backward(q, kv, bias, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        q, kv, bias, *kept = ctx.saved_tensors
        with without_autocast(q):
            return _gradients(_Chunks(q, kv, bias), kept, grad_outputs[0], q, kv, bias)


def _gradients(
    chunks: _Chunks, kept: Sequence[Tensor], grad: Tensor, q: Tensor, kv: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `q`, `kv` and `bias`; sums over chunks are in fp32 at least, in a fixed order.

    `kept` has the probabilities of each chunk, or nothing.
    """
    heads, dtype, sums = bias.shape[1], q.dtype, chunks.bias.dtype
    dq, dkv = _empty_like(q, dtype), _empty_like(kv, sums).zero_()
    dbias = torch.zeros_like(chunks.bias)
    grads = grad.flatten(2).unflatten(1, (heads, -1)).mT
    dq_by_head = dq.flatten(2).unflatten(1, (heads, -1))
    dk, dv = dkv.flatten(2).unflatten(1, (2, heads, -1)).unbind(1)
    probabilities = iter(kept or chunks.all_probabilities())
    for span in chunks.spans():
        own_dbias = torch.zeros((heads, span.stop - span.start, kv.shape[2:].numel()), dtype=sums, device=q.device)
        for group in chunks.groups():
            p = next(probabilities)
            own_grad = grads[group, :, span]
            dv[group] += own_grad.mT @ p.to(dtype)
            dp = (own_grad @ chunks.values[group]).to(sums)
            dlogits = torch.ops.aten._softmax_backward_data(dp, p, -1, sums)
            own_dbias += dlogits.sum(0)
            low = dlogits.mul_(chunks.scale).to(dtype)
            dq_by_head[group, :, :, span] = chunks.keys[group] @ low.mT
            dk[group] += chunks.queries[group, :, span].mT @ low
        chunks.add_bias_gradient(dbias, own_dbias, span)
    return dq, dkv.to(kv.dtype), dbias[None].to(bias.dtype)
