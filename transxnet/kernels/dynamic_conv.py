"""IDConv over `[N, C, H, W]`: every sample convolved depthwise with kernels made of its own means.

    kernels = generated from the adaptive means of x (`means`, `kernel_generation`)
    y = x convolved with its kernels (`depthwise_conv`)

Means, generation and convolution are one function to autograd: the two gradients of x meet in one pass, and those of
the kernels, `[N, C, K * K + 1]`, go on as the convolution leaves them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.kernels.depthwise_conv import convolve
from transxnet.kernels.kernel_generation import MAX_HIDDEN, Generated, Generator, generate
from transxnet.kernels.kernel_gradients import generate_gradient
from transxnet.kernels.means import means, means_gradient

__all__ = ["MAX_HIDDEN", "convolve_own", "convolve_own_gradient", "dynamic_conv", "dynamic_conv_reference"]


def dynamic_conv_reference(
    x: Tensor, squeeze: Tensor, norm: nn.BatchNorm2d, expand: Tensor, offset: Tensor, taps: Tensor, bias: Tensor
) -> Tensor:
    """The formula in plain PyTorch."""
    n, c, h, w = x.shape
    groups, kernel = len(bias), taps.shape[-1]

    def mixing(pooled: Tensor) -> Tensor:
        logits = F.conv2d(F.gelu(norm(F.conv2d(pooled, squeeze))), expand, offset)
        return torch.softmax(logits.unflatten(1, (groups, c)), dim=1)

    weight = (mixing(F.adaptive_avg_pool2d(x, kernel)) * taps).sum(1)
    own_bias = (mixing(x.mean((-2, -1), keepdim=True)).flatten(2) * bias).sum(1)
    flat = weight.reshape(n * c, 1, kernel, kernel)
    out = F.conv2d(x.reshape(1, n * c, h, w), flat, own_bias.reshape(-1), padding=kernel // 2, groups=n * c)
    return out.reshape(x.shape)


def convolve_own(x: Tensor, made_with: Generator, norm: nn.BatchNorm2d, out: Tensor) -> Generated:
    """Into `out`, part of the channels of a contiguous tensor, what `dynamic_conv` returns of contiguous `x`."""
    generated = generate(means(x, made_with.taps.shape[-1]), made_with, norm)
    convolve(x, generated.kernels, out=out)
    return generated


def convolve_own_gradient(
    grad: Tensor, x: Tensor, generated: Generated, made_with: Generator
) -> tuple[Tensor, Generator]:
    """Gradients of `x` and the parameters from the output's, part of the channels of a contiguous tensor."""
    dx, dkernels = convolve(grad, generated.kernels, given=x)
    dpooled, dparameters = generate_gradient(dkernels, generated, made_with)
    means_gradient(dpooled, dx, made_with.taps.shape[-1])
    return dx, dparameters


class _DynamicConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: nn.BatchNorm2d, *parameters: Tensor) -> Tensor:
        out = torch.empty_like(x)
        *saved, of_taps, of_bias = convolve_own(x, Generator(*parameters), norm, out)
        ctx.stats = of_taps, of_bias
        ctx.save_for_backward(x, *saved, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, kernels, pooled, hidden, *parameters = ctx.saved_tensors
        generated = Generated(kernels, pooled, hidden, *ctx.stats)
        dx, dparameters = convolve_own_gradient(grad_outputs[0].contiguous(), x, generated, Generator(*parameters))
        return dx, None, *dparameters


def dynamic_conv(
    x: Tensor, squeeze: Tensor, norm: nn.BatchNorm2d, expand: Tensor, offset: Tensor, taps: Tensor, bias: Tensor
) -> Tensor:
    """Convolve each sample of `x` with the kernels that it makes itself.

    Args:
        x: `[N, C, H, W]` in fp32, bf16 or fp16. Parameters are in fp32.
        squeeze: `[R, C, 1, 1]`, R at most `MAX_HIDDEN`.
        norm: of R channels; in training it takes the statistics of the taps' positions and of the bias's apart, and its
            running ones move twice.
        expand: `[G * C, R, 1, 1]`.
        offset: `[G * C]`, added to the logits.
        taps: `[G, C, K, K]`, K odd and at most 7.
        bias: `[G, C]`.

    Raises:
        ValueError: training on a single sample.
    """
    assert len(squeeze) <= MAX_HIDDEN
    parameters = Generator(squeeze, norm.weight, norm.bias, expand, offset, taps, bias)
    return _DynamicConvFunction.apply(x.contiguous(), norm, *parameters)
