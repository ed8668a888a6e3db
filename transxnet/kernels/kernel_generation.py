# ruff: noqa: ANN001, ANN201, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
"""IDConv's kernels from the means of its input, for P = K * K + 1 positions: the taps and the bias.

    hidden = squeeze pooled                                     [N, R, P]
    logits = expand gelu(norm(hidden)) + offset                 [N, G, C, P]
    kernel = sum over g of softmax over g (logits) * table      [N, C, P]

All but the norm's statistics, which the bias's position has of its own, is alike for the positions: so they go through
every kernel together, a sample's at a time, as the columns of its products. Neither logits nor softmax are in memory:
the backward makes them again from `hidden`. Sums over samples are cut into splits and added in a fixed order.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from transxnet.kernels.activation import gelu
from transxnet.kernels.pixels import block
from transxnet.kernels.statistics import Pieces, Statistics, check_batch, merge, running_statistics

__all__ = [
    "CHANNELS",
    "MAX_HIDDEN",
    "ROWS",
    "Generated",
    "Generator",
    "Sizes",
    "generate",
    "load_activation",
    "load_standardised",
    "load_table",
    "softmax",
]

# Squeezed channels that fit a program's registers; the published models have at most 84.
MAX_HIDDEN = 128
PROGRAMS = 264
# Largest sides of a tile, channels and rows of logits, and warps, that spill no registers on sm_80 and sm_90.
CHANNELS, ROWS, WARPS = 32, 64, 8


class Generator(NamedTuple):
    """Parameters, in fp32; K is odd and at most 7."""

    squeeze: Tensor
    """`[R, C, 1, 1]`, R at most `MAX_HIDDEN`."""
    weight: Tensor
    """Of the norm, `[R]`."""
    shift: Tensor
    """The norm's bias, `[R]`."""
    expand: Tensor
    """`[G * C, R, 1, 1]`."""
    offset: Tensor
    """`[G * C]`."""
    taps: Tensor
    """`[G, C, K, K]`."""
    bias: Tensor
    """`[G, C]`."""


class Generated(NamedTuple):
    """What the forward leaves for the backward."""

    kernels: Tensor
    """`[N, C, P]`, as are `pooled`; in the dtype of the input."""
    pooled: Tensor
    hidden: Tensor
    """`[N, R, P]`."""
    of_taps: Statistics
    of_bias: Statistics


@triton.jit
def _squeeze_kernel(
    pooled_ptr, squeeze_ptr, hidden_ptr, partial_ptr, N, C, R, K: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (sample): hidden, and for the norm its sum and squares about its mean: of the taps' positions to
    # partial[0, sample, 0:2, r], of the bias's to partial[1, sample, 0:2, r].
    n = tl.program_id(0).to(tl.int64)
    r, p = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    hidden = tl.zeros([BLOCK_R, BLOCK_P], dtype=tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        known = (c < C)[:, None] & (p <= K * K)[None, :]
        pooled = tl.load(pooled_ptr + (n * C + c[:, None]) * (K * K + 1) + p[None, :], mask=known, other=0.0)
        matrix = tl.load(squeeze_ptr + r[:, None] * C + c[None, :], mask=(r < R)[:, None] & (c < C)[None, :], other=0.0)
        hidden = tl.dot(matrix.to(pooled.dtype), pooled, hidden, input_precision="ieee")
    live = r < R
    where = (n * R + r[:, None]) * (K * K + 1) + p[None, :]
    tl.store(hidden_ptr + where, hidden.to(hidden_ptr.dtype.element_ty), mask=live[:, None] & (p <= K * K)[None, :])
    of_taps = (p < K * K)[None, :]
    total = tl.sum(tl.where(of_taps, hidden, 0.0), 1)
    away = tl.where(of_taps, hidden - (total / (K * K))[:, None], 0.0)
    here = partial_ptr + n * 2 * R + r
    tl.store(here, total, mask=live)
    tl.store(here + R, tl.sum(away * away, 1), mask=live)
    tl.store(here + N * 2 * R, tl.sum(tl.where((p == K * K)[None, :], hidden, 0.0), 1), mask=live)
    tl.store(here + N * 2 * R + R, tl.zeros([BLOCK_R], dtype=tl.float32), mask=live)


@triton.jit
def load_standardised(
    hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, n, R, K: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """The norm's input less its mean and over its deviation, and 1 / deviation, both [BLOCK_R, BLOCK_P] fp32."""
    r, p = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    live = r < R
    of_taps = (p < K * K)[None, :]
    mean_taps = tl.load(mean_taps_ptr + r, mask=live, other=0.0)[:, None]
    mean_bias = tl.load(mean_bias_ptr + r, mask=live, other=0.0)[:, None]
    rstd_taps = tl.load(rstd_taps_ptr + r, mask=live, other=0.0)[:, None]
    rstd_bias = tl.load(rstd_bias_ptr + r, mask=live, other=0.0)[:, None]
    where = (n * R + r[:, None]) * (K * K + 1) + p[None, :]
    hidden = tl.load(hidden_ptr + where, mask=live[:, None] & (p <= K * K)[None, :], other=0.0).to(tl.float32)
    rstd = tl.where(of_taps, rstd_taps, rstd_bias)
    return (hidden - tl.where(of_taps, mean_taps, mean_bias)) * rstd, rstd


@triton.jit
def load_activation(
    hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, weight_ptr, shift_ptr, n, R,
    K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """gelu(norm(hidden)) of a sample, [BLOCK_R, BLOCK_P], in the dtype of hidden."""
    xhat, _ = load_standardised(
        hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, n, R, K, BLOCK_R, BLOCK_P
    )
    r = tl.arange(0, BLOCK_R)
    weight = tl.load(weight_ptr + r, mask=r < R, other=0.0)[:, None]
    shift = tl.load(shift_ptr + r, mask=r < R, other=0.0)[:, None]
    dtype: tl.constexpr = hidden_ptr.dtype.element_ty
    return gelu(xhat * weight + shift, dtype).to(dtype)


@triton.jit
def softmax(logits, group, G, BLOCK_C: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_P: tl.constexpr):
    """Over the groups: [BLOCK_C * BLOCK_G, BLOCK_P], of which row r is of group r % BLOCK_G, to [C, G, P]."""
    logits = tl.where((group < G)[:, None], logits, float("-inf"))
    logits = tl.reshape(logits, [BLOCK_C, BLOCK_G, BLOCK_P])
    found = tl.exp(logits - tl.max(logits, 1)[:, None, :])
    return found * (1.0 / tl.sum(found, 1))[:, None, :]


@triton.jit
def load_table(taps_ptr, bias_ptr, row, live, K: tl.constexpr, BLOCK_P: tl.constexpr):
    """The learned taps and, at position K * K, the bias of each row; [rows, BLOCK_P] fp32."""
    p = tl.arange(0, BLOCK_P)
    known = live[:, None] & (p < K * K)[None, :]
    found = tl.load(taps_ptr + row[:, None] * (K * K) + p[None, :], mask=known, other=0.0)
    bias = tl.load(bias_ptr + row, mask=live, other=0.0)
    return tl.where((p == K * K)[None, :], bias[:, None], found).to(tl.float32)


@triton.jit
def _mix_kernel(
    hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, weight_ptr, shift_ptr, expand_ptr,
    offset_ptr, taps_ptr, bias_ptr, kernel_ptr, C, R, G, K: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of channels, sample): from hidden to the sample's kernels.
    n = tl.program_id(1).to(tl.int64)
    r, p, rows = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_C * BLOCK_G)
    channel, group = tl.program_id(0) * BLOCK_C + rows // BLOCK_G, rows % BLOCK_G
    row, live = group * C + channel, (channel < C) & (group < G)
    activation = load_activation(
        hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, weight_ptr, shift_ptr, n, R, K,
        BLOCK_R, BLOCK_P,
    )  # fmt: skip
    matrix = tl.load(expand_ptr + row[:, None] * R + r[None, :], mask=live[:, None] & (r < R)[None, :], other=0.0)
    logits = tl.dot(matrix.to(activation.dtype), activation, input_precision="ieee")
    logits += tl.load(offset_ptr + row, mask=live, other=0.0).to(tl.float32)[:, None]
    mixing = softmax(logits, group, G, BLOCK_C, BLOCK_G, BLOCK_P)
    table = tl.reshape(load_table(taps_ptr, bias_ptr, row, live, K, BLOCK_P), [BLOCK_C, BLOCK_G, BLOCK_P])
    kernel = tl.sum(mixing * table, 1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    where = (n * C + c[:, None]) * (K * K + 1) + p[None, :]
    tl.store(kernel_ptr + where, kernel.to(kernel_ptr.dtype.element_ty), mask=(c < C)[:, None] & (p <= K * K)[None, :])


class Sizes(NamedTuple):
    """Sizes of the operator, and the blocks of its kernels that follow from them."""

    n: int
    c: int
    r: int
    groups: int
    kernel: int

    @classmethod
    def of(cls, pooled: Tensor, made_with: Generator) -> "Sizes":
        """Sizes for means `[N, C, P]` and their parameters."""
        return cls(len(pooled), pooled.shape[1], len(made_with.squeeze), len(made_with.bias), made_with.taps.shape[-1])

    @property
    def positions(self) -> int:
        """Taps of a kernel, and its bias."""
        return self.kernel**2 + 1

    def whole(self) -> dict[str, int]:
        """A program holds all positions and squeezed channels."""
        blocks = {"K": self.kernel, "BLOCK_R": block(self.r), "BLOCK_P": block(self.positions)}
        return {**blocks, "num_warps": WARPS}

    def mixed(self) -> dict[str, int]:
        """Channels and all their groups are the rows of a tile."""
        groups = triton.next_power_of_2(self.groups)
        return {"BLOCK_G": groups, "BLOCK_C": block(self.c * groups, ROWS) // groups}

    def channels(self) -> int:
        """Of a tile beside all squeezed ones."""
        return block(self.c, CHANNELS if self.r <= MAX_HIDDEN // 2 else CHANNELS // 2)

    def splits(self, blocks: int) -> tuple[int, int]:
        """(Splits, samples of each) where a split is `blocks` programs."""
        samples = triton.cdiv(self.n, triton.cdiv(PROGRAMS, blocks))
        return triton.cdiv(self.n, samples), samples


def generate(pooled: Tensor, made_with: Generator, norm: nn.BatchNorm2d) -> Generated:
    """Each sample's kernels from its means `pooled` `[N, C, P]`; in training the running statistics move twice.

    Raises:
        ValueError: training on a single sample.
    """
    check_batch(pooled[:, :, -1:], norm)
    sizes = Sizes.of(pooled, made_with)
    n, c, r, groups, kernel = sizes
    whole, mixed = sizes.whole(), sizes.mixed()
    hidden = torch.empty((n, r, sizes.positions), dtype=pooled.dtype, device=pooled.device)
    partial = torch.empty((2, n, 2, r), dtype=torch.float32, device=pooled.device)
    _squeeze_kernel[(n,)](pooled, made_with.squeeze, hidden, partial, n, c, r, **whole, BLOCK_C=sizes.channels())
    if norm.training:
        of_taps = merge(Pieces(partial[0], kernel**2, n * kernel**2, n * kernel**2), norm)
        of_bias = merge(Pieces(partial[1], 1, n, n), norm)
    else:
        of_taps = of_bias = running_statistics(norm)
    kernels = torch.empty_like(pooled)
    _mix_kernel[(triton.cdiv(c, mixed["BLOCK_C"]), n)](
        hidden, of_taps.mean, of_taps.rstd, of_bias.mean, of_bias.rstd, *made_with[1:], kernels, c, r, groups,
        **whole, **mixed,
    )  # fmt: skip
    return Generated(kernels, pooled, hidden, of_taps, of_bias)
