# ruff: noqa: ANN001, ANN202 - a kernel's arguments are pointers and scalars that the launch types.
# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""MS-FFN up to its second norm, over `[N, C, H, W]`.

    h = M x   e = norm1(gelu(h))   d = e + depthwise convolutions of 1, 3, 5, 7 taps a side on quarters of e

Forward: the 1x1 expansion writes `h` and `g = gelu(h)` and takes norm1's sums; the convolution normalises `g` on load,
splits and concatenates by pointer, and takes the second norm's sums of its output in passing.
Backward: the turned convolution takes the sums that norm1's gradient needs from the values it has just made, and the
taps' own gradients from the values it has loaded (see `depthwise_conv`); norm and GELU are undone as the expansion's
input gradient loads them. `e` is never in memory. Saved are `x` and `h`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.kernels.activation import batch_statistics, gelu
from transxnet.kernels.depthwise_conv import LAUNCH, convolve_rows, multiscale_conv_reference, row_block
from transxnet.kernels.linear import expand_gelu, expand_gelu_gradient
from transxnet.kernels.statistics import Pieces, Statistics

__all__ = ["expand_norm_multiscale", "expand_norm_multiscale_reference"]


def expand_norm_multiscale_reference(
    x: Tensor, matrix: Tensor, norm: nn.BatchNorm2d, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> Tensor:
    """The formula in plain PyTorch."""
    return multiscale_conv_reference(norm(F.gelu(F.conv2d(x, matrix))), weights, biases)


@triton.jit
def _middle_kernel(
    x_ptr, h_ptr, w1_ptr, w3_ptr, w5_ptr, w7_ptr, b1_ptr, b3_ptr, b5_ptr, b7_ptr,
    mean_ptr, rstd_ptr, weight_ptr, bias_ptr, y_ptr, partial_ptr, partial_taps_ptr, N, C, quarter,
    H: tl.constexpr, W: tl.constexpr, BACKWARD: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    # Program (block of the channel's rows in all samples, channel).
    # Forward: x is g, normalised on load; of the block the sum of gelu(y), and the squares about its mean.
    # Backward: x is d's gradient, y is e's; with g = gelu(h) the sums of y and of y * (g - mean) * rstd, and the taps'
    # gradients: a row of partial_taps for each block, [window, K * K + 1] of one scale after the other.
    c = tl.program_id(1)
    r = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = r < N * H
    h = r % H
    rows = ((r // H).to(tl.int64) * C + c) * (H * W) + h * W
    w = tl.arange(0, BLOCK_W)
    mask = live[:, None] & (w < W)[None, :]
    mean = tl.load(mean_ptr + c)
    rstd = tl.load(rstd_ptr + c)
    scale = rstd * tl.load(weight_ptr + c).to(tl.float32)
    shift = tl.load(bias_ptr + c).to(tl.float32) - mean * scale
    here = tl.load(x_ptr + rows[:, None] + w[None, :], mask=mask, other=0.0)
    acc = here.to(tl.float32)
    g = acc
    e = here
    bias = tl.sum(tl.sum(acc, 1), 0)
    if BACKWARD:
        g = gelu(tl.load(h_ptr + rows[:, None] + w[None, :], mask=mask, other=0.0).to(tl.float32))
        e = tl.where(mask, g * scale + shift, 0.0).to(here.dtype)
    else:
        acc = acc * scale + shift
    first = C - 3 * quarter
    taken = partial_taps_ptr + tl.program_id(0).to(tl.int64) * (2 * C + 80 * quarter)
    if c < first:
        row = c
        to = taken + row * 2
        if BACKWARD:
            tl.store(to + 1, bias)
        else:
            acc += tl.load(b1_ptr + row).to(tl.float32)
        acc = convolve_rows(
            x_ptr, w1_ptr + row, to, e, acc, rows, h, live, scale, shift, H, W, 1, not BACKWARD, BACKWARD, BLOCK_W
        )
    elif c < first + quarter:
        row = c - first
        to = taken + 2 * first + row * 10
        if BACKWARD:
            tl.store(to + 9, bias)
        else:
            acc += tl.load(b3_ptr + row).to(tl.float32)
        acc = convolve_rows(
            x_ptr, w3_ptr + row * 9, to, e, acc, rows, h, live, scale, shift, H, W, 3, not BACKWARD, BACKWARD, BLOCK_W
        )
    elif c < first + 2 * quarter:
        row = c - first - quarter
        to = taken + 2 * first + 10 * quarter + row * 26
        if BACKWARD:
            tl.store(to + 25, bias)
        else:
            acc += tl.load(b5_ptr + row).to(tl.float32)
        acc = convolve_rows(
            x_ptr, w5_ptr + row * 25, to, e, acc, rows, h, live, scale, shift, H, W, 5, not BACKWARD, BACKWARD, BLOCK_W
        )
    else:
        row = c - first - 2 * quarter
        to = taken + 2 * first + 36 * quarter + row * 50
        if BACKWARD:
            tl.store(to + 49, bias)
        else:
            acc += tl.load(b7_ptr + row).to(tl.float32)
        acc = convolve_rows(
            x_ptr, w7_ptr + row * 49, to, e, acc, rows, h, live, scale, shift, H, W, 7, not BACKWARD, BACKWARD, BLOCK_W
        )
    tl.store(y_ptr + rows[:, None] + w[None, :], acc.to(y_ptr.dtype.element_ty), mask=mask)
    if BACKWARD:
        one = tl.where(mask, acc, 0.0)
        two = one * (g - mean) * rstd
        total = tl.sum(tl.sum(one, 1), 0)
    else:
        one = tl.where(mask, gelu(acc), 0.0)
        total = tl.sum(tl.sum(one, 1), 0)
        size = (tl.minimum(N * H - tl.program_id(0) * BLOCK_R, BLOCK_R) * W).to(tl.float32)
        two = tl.where(mask, one - total / size, 0.0)
        two *= two
    sums = partial_ptr + tl.program_id(0) * 2 * C + c
    tl.store(sums, total)
    tl.store(sums + C, tl.sum(tl.sum(two, 1), 0))


def _launch(
    x: Tensor, h: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], stats: Statistics,
    affine: tuple[Tensor, Tensor], *, backward: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`_middle_kernel`'s output, its partial sums `[blocks, 2, C]`, and those of the taps, a row each block."""
    n, c, height, width = x.shape
    block_r, block_w = row_block(n * height, width, backward=backward)
    quarter, blocks = c // 4, triton.cdiv(n * height, block_r)
    y = torch.empty_like(x)
    partial = torch.empty((blocks, 2, c), dtype=torch.float32, device=x.device)
    taps = torch.empty((blocks, 2 * c + 80 * quarter) if backward else 1, dtype=torch.float32, device=x.device)
    _middle_kernel[(blocks, c)](
        x, h, *weights, *biases, stats.mean, stats.rstd, *affine, y, partial, taps, n, c, quarter,
        H=height, W=width, BACKWARD=backward, BLOCK_R=block_r, BLOCK_W=block_w, **LAUNCH,
    )  # fmt: skip
    return y, partial, taps


class _ExpandFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, matrix: Tensor, norm: nn.BatchNorm2d, *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        affine, weights, biases = (parameters[0], parameters[1]), parameters[2:6], parameters[6:]
        low = matrix.flatten(1).to(x.dtype)
        h, g, pieces = expand_gelu(x, low, pieces=norm.training)
        stats = batch_statistics(h, norm, pieces, apply_gelu=True)
        d, partial, _ = _launch(g, g, weights, biases, stats, affine, backward=False)
        ctx.save_for_backward(x, low, h, *affine, *weights)
        ctx.stats, ctx.matrix = stats, (matrix.shape, matrix.dtype)
        ctx.bias_dtype = biases[0].dtype
        ctx.mark_non_differentiable(partial)
        return d, partial

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, low, h, weight, bias, *weights = ctx.saved_tensors
        stats = ctx.stats
        grad = grad_outputs[0].contiguous()
        de, partial, taps = _launch(grad, h, weights, weights, stats, (weight, bias), backward=True)
        sums, taps = partial.sum(0), taps.sum(0)
        dweights, dbiases, first = [], [], 0
        for taken in weights:
            last = first + len(taken) + taken.numel()
            found = taps[first:last].view(len(taken), -1)
            dweights.append(found[:, :-1].reshape(taken.shape).to(taken.dtype))
            dbiases.append(found[:, -1].to(ctx.bias_dtype))
            first = last
        shared, inverse_count = stats.shared(sums)
        dx, dmatrix = expand_gelu_gradient(
            x, low, h, de, (stats.mean, stats.rstd, weight), shared, inverse_count, batch=stats.of_batch
        )
        shape, dtype = ctx.matrix
        affine = (sums[1].to(weight.dtype), sums[0].to(weight.dtype))
        return dx, dmatrix.view(shape).to(dtype), None, *affine, *dweights, *dbiases


def expand_norm_multiscale(
    x: Tensor, matrix: Tensor, norm: nn.BatchNorm2d, weights: Sequence[Tensor], biases: Sequence[Tensor]
) -> tuple[Tensor, Pieces]:
    """`e + multiscale(e)` with `e = norm(gelu(conv1x1(x)))`, and the pieces of its GELU for the norm to come.

    `x` is `[N, C_in, H, W]` in fp32, bf16 or fp16, `matrix` `[C, C_in, 1, 1]`, `weights` `[window, 1, K, K]` for K = 1,
    3, 5, 7; the last three windows are a quarter of the channels each.

    Raises:
        ValueError: training on a single value per channel.
    """
    assert [weight.shape[-1] for weight in weights] == [1, 3, 5, 7]
    assert all(len(weight) == len(matrix) // 4 for weight in weights[1:])
    d, partial = _ExpandFunction.apply(x.contiguous(), matrix, norm, norm.weight, norm.bias, *weights, *biases)
    n, _, height, width = d.shape
    values = n * height * width
    return d, Pieces(partial, row_block(n * height, width, backward=False)[0] * width, values, values)
