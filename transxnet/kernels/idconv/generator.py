# ruff: noqa: ANN001, ANN201, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false
"""IDConv's kernel generator: from adaptive means to kernels, for P = K * K + 1 positions, the taps and the bias.

    hidden = squeeze pooled                                     [N, R, P]
    logits = expand gelu(norm(hidden)) + offset                 [N, G, C, P]
    kernel = sum over g of softmax over g (logits) * table      [N, C, P]

Source: TransXNet, arXiv 2310.19380, section 3 (IDConv). All positions go through every kernel together, as the columns
of a sample's matrix products; only the norm takes separate statistics for the bias's position. Neither logits nor
softmax are written to memory: the backward computes them again from `hidden`. Sums over samples are split over
programs, and the splits are added in a fixed order.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from transxnet.kernels.common.activation import gelu
from transxnet.kernels.common.statistics import (
    PartialStats,
    Statistics,
    check_values_per_channel,
    merge,
    running_statistics,
)
from transxnet.kernels.common.tiles import block_size

__all__ = [
    "CHANNELS",
    "MAX_HIDDEN",
    "ROWS",
    "GeneratorOutput",
    "GeneratorParameters",
    "GeneratorSizes",
    "generate_kernels",
    "load_activation",
    "load_standardised",
    "load_taps_and_bias",
    "softmax",
]

# Most squeezed channels that fit in a program's registers; the published models have at most 84.
MAX_HIDDEN = 128
PROGRAMS = 264
# Largest tile sides (channels, rows of logits), and warps, that spill no registers on sm_80 and sm_90.
CHANNELS, ROWS, WARPS = 32, 64, 8


class GeneratorParameters(NamedTuple):
    """Parameters of the generator, fp32; K is odd and at most 7."""

    squeeze: Tensor
    """`[R, C, 1, 1]`, R at most `MAX_HIDDEN`."""
    weight: Tensor
    """The norm's weight, `[R]`."""
    shift: Tensor
    """The norm's bias, `[R]`."""
    expand: Tensor
    """`[G * C, R, 1, 1]`."""
    offset: Tensor
    """`[G * C]`, bias of `expand`."""
    taps: Tensor
    """`[G, C, K, K]`."""
    bias: Tensor
    """`[G, C]`."""


class GeneratorOutput(NamedTuple):
    """The kernels of each sample, and what the backward needs."""

    kernels: Tensor
    """`[N, C, P]`, in the dtype of the input."""
    pooled: Tensor
    """The adaptive means, shaped like `kernels`."""
    hidden: Tensor
    """`[N, R, P]`."""
    taps_stats: Statistics
    bias_stats: Statistics


@triton.jit
def _squeeze_kernel(
    pooled_ptr, squeeze_ptr, hidden_ptr, partial_ptr, N, C, R, K: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (sample n): hidden, and its partial statistics for the norm: of the taps' positions to partial[0, n, 0:2,
    # r], of the bias's position to partial[1, n, 0:2, r].
    n = tl.program_id(0).to(tl.int64)
    r, p = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    hidden = tl.zeros([BLOCK_R, BLOCK_P], dtype=tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        mask = (c < C)[:, None] & (p <= K * K)[None, :]
        pooled = tl.load(pooled_ptr + (n * C + c[:, None]) * (K * K + 1) + p[None, :], mask=mask, other=0.0)
        matrix = tl.load(squeeze_ptr + r[:, None] * C + c[None, :], mask=(r < R)[:, None] & (c < C)[None, :], other=0.0)
        hidden = tl.dot(matrix.to(pooled.dtype), pooled, hidden, input_precision="ieee")
    in_range = r < R
    offsets = (n * R + r[:, None]) * (K * K + 1) + p[None, :]
    tl.store(
        hidden_ptr + offsets, hidden.to(hidden_ptr.dtype.element_ty), mask=in_range[:, None] & (p <= K * K)[None, :]
    )
    is_tap = (p < K * K)[None, :]
    total = tl.sum(tl.where(is_tap, hidden, 0.0), 1)
    deviation = tl.where(is_tap, hidden - (total / (K * K))[:, None], 0.0)
    pointers = partial_ptr + n * 2 * R + r
    tl.store(pointers, total, mask=in_range)
    tl.store(pointers + R, tl.sum(deviation * deviation, 1), mask=in_range)
    tl.store(pointers + N * 2 * R, tl.sum(tl.where((p == K * K)[None, :], hidden, 0.0), 1), mask=in_range)
    tl.store(pointers + N * 2 * R + R, tl.zeros([BLOCK_R], dtype=tl.float32), mask=in_range)


@triton.jit
def load_standardised(
    hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, n, R, K: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Return the norm's standardised input and 1 / standard deviation, both [BLOCK_R, BLOCK_P] fp32."""
    r, p = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P)
    in_range = r < R
    is_tap = (p < K * K)[None, :]
    mean_taps = tl.load(mean_taps_ptr + r, mask=in_range, other=0.0)[:, None]
    mean_bias = tl.load(mean_bias_ptr + r, mask=in_range, other=0.0)[:, None]
    rstd_taps = tl.load(rstd_taps_ptr + r, mask=in_range, other=0.0)[:, None]
    rstd_bias = tl.load(rstd_bias_ptr + r, mask=in_range, other=0.0)[:, None]
    offsets = (n * R + r[:, None]) * (K * K + 1) + p[None, :]
    hidden = tl.load(hidden_ptr + offsets, mask=in_range[:, None] & (p <= K * K)[None, :], other=0.0).to(tl.float32)
    rstd = tl.where(is_tap, rstd_taps, rstd_bias)
    return (hidden - tl.where(is_tap, mean_taps, mean_bias)) * rstd, rstd


@triton.jit
def load_activation(
    hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, weight_ptr, shift_ptr, n, R,
    K: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Return gelu(norm(hidden)) of sample n, [BLOCK_R, BLOCK_P], in the dtype of hidden."""
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
    """Return the softmax over groups, [C, G, P], of logits [C * G, P]; row r belongs to group r % BLOCK_G."""
    logits = tl.where((group < G)[:, None], logits, float("-inf"))
    logits = tl.reshape(logits, [BLOCK_C, BLOCK_G, BLOCK_P])
    result = tl.exp(logits - tl.max(logits, 1)[:, None, :])
    return result * (1.0 / tl.sum(result, 1))[:, None, :]


@triton.jit
def load_taps_and_bias(taps_ptr, bias_ptr, row, in_range, K: tl.constexpr, BLOCK_P: tl.constexpr):
    """Return the learned taps and, at position K * K, the bias of each row; [rows, BLOCK_P] fp32."""
    p = tl.arange(0, BLOCK_P)
    mask = in_range[:, None] & (p < K * K)[None, :]
    result = tl.load(taps_ptr + row[:, None] * (K * K) + p[None, :], mask=mask, other=0.0)
    bias = tl.load(bias_ptr + row, mask=in_range, other=0.0)
    return tl.where((p == K * K)[None, :], bias[:, None], result).to(tl.float32)


@triton.jit
def _mix_kernel(
    hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, weight_ptr, shift_ptr, expand_ptr,
    offset_ptr, taps_ptr, bias_ptr, kernel_ptr, C, R, G, K: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Program (block of channels, sample): the sample's kernels, given hidden.
    n = tl.program_id(1).to(tl.int64)
    r, p, rows = tl.arange(0, BLOCK_R), tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_C * BLOCK_G)
    channel, group = tl.program_id(0) * BLOCK_C + rows // BLOCK_G, rows % BLOCK_G
    row, in_range = group * C + channel, (channel < C) & (group < G)
    activation = load_activation(
        hidden_ptr, mean_taps_ptr, rstd_taps_ptr, mean_bias_ptr, rstd_bias_ptr, weight_ptr, shift_ptr, n, R, K,
        BLOCK_R, BLOCK_P,
    )  # fmt: skip
    matrix = tl.load(expand_ptr + row[:, None] * R + r[None, :], mask=in_range[:, None] & (r < R)[None, :], other=0.0)
    logits = tl.dot(matrix.to(activation.dtype), activation, input_precision="ieee")
    logits += tl.load(offset_ptr + row, mask=in_range, other=0.0).to(tl.float32)[:, None]
    mixing = softmax(logits, group, G, BLOCK_C, BLOCK_G, BLOCK_P)
    table = tl.reshape(load_taps_and_bias(taps_ptr, bias_ptr, row, in_range, K, BLOCK_P), [BLOCK_C, BLOCK_G, BLOCK_P])
    kernel = tl.sum(mixing * table, 1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    offsets = (n * C + c[:, None]) * (K * K + 1) + p[None, :]
    tl.store(
        kernel_ptr + offsets, kernel.to(kernel_ptr.dtype.element_ty), mask=(c < C)[:, None] & (p <= K * K)[None, :]
    )


class GeneratorSizes(NamedTuple):
    """Sizes of the generator, and the blocks of its kernels that follow from them."""

    n: int
    c: int
    r: int
    groups: int
    kernel: int

    @classmethod
    def of(cls, pooled: Tensor, parameters: GeneratorParameters) -> "GeneratorSizes":
        """Return the sizes for means `[N, C, P]`."""
        return cls(
            len(pooled), pooled.shape[1], len(parameters.squeeze), len(parameters.bias), parameters.taps.shape[-1]
        )

    @property
    def positions(self) -> int:
        """Number of positions: the taps of a kernel and its bias."""
        return self.kernel**2 + 1

    def sample_tile(self) -> dict[str, int]:
        """Return the blocks of a program that holds all positions and squeezed channels."""
        blocks = {"K": self.kernel, "BLOCK_R": block_size(self.r), "BLOCK_P": block_size(self.positions)}
        return {**blocks, "num_warps": WARPS}

    def mix_tile(self) -> dict[str, int]:
        """Return the blocks of a tile whose rows are channels with all their groups."""
        groups = triton.next_power_of_2(self.groups)
        return {"BLOCK_G": groups, "BLOCK_C": block_size(self.c * groups, ROWS) // groups}

    def block_c(self) -> int:
        """Return the number of channels in a tile that also holds all squeezed channels."""
        return block_size(self.c, CHANNELS if self.r <= MAX_HIDDEN // 2 else CHANNELS // 2)

    def splits(self, blocks: int) -> tuple[int, int]:
        """Return (splits, samples per split), where each split has `blocks` programs."""
        samples = triton.cdiv(self.n, triton.cdiv(PROGRAMS, blocks))
        return triton.cdiv(self.n, samples), samples


def generate_kernels(pooled: Tensor, parameters: GeneratorParameters, norm: nn.BatchNorm2d) -> GeneratorOutput:
    """Return each sample's kernels, given its means `pooled` `[N, C, P]`.

    In training the norm's running statistics are updated twice: for the taps' positions and for the bias's.

    Raises:
        ValueError: a batch in training has a single sample.
    """
    check_values_per_channel(pooled[:, :, -1:], norm)
    sizes = GeneratorSizes.of(pooled, parameters)
    n, c, r, groups, kernel = sizes
    sample_tile, mix_tile = sizes.sample_tile(), sizes.mix_tile()
    hidden = torch.empty((n, r, sizes.positions), dtype=pooled.dtype, device=pooled.device)
    partial = torch.empty((2, n, 2, r), dtype=torch.float32, device=pooled.device)
    _squeeze_kernel[(n,)](pooled, parameters.squeeze, hidden, partial, n, c, r, **sample_tile, BLOCK_C=sizes.block_c())
    if norm.training:
        taps_stats = merge(PartialStats(partial[0], kernel**2, n * kernel**2, n * kernel**2), norm)
        bias_stats = merge(PartialStats(partial[1], 1, n, n), norm)
    else:
        taps_stats = bias_stats = running_statistics(norm)
    kernels = torch.empty_like(pooled)
    _mix_kernel[(triton.cdiv(c, mix_tile["BLOCK_C"]), n)](
        hidden, taps_stats.mean, taps_stats.rstd, bias_stats.mean, bias_stats.rstd, *parameters[1:], kernels, c, r,
        groups, **sample_tile, **mix_tile,
    )  # fmt: skip
    return GeneratorOutput(kernels, pooled, hidden, taps_stats, bias_stats)
