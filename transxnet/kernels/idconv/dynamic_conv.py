"""IDConv over `[N, C, H, W]`: each sample is convolved depthwise with kernels generated from its own adaptive means.

    kernels = generated from the adaptive means of x (`means`, `generator`)
    y = depthwise convolution of x with its kernels (`depthwise_conv`)

Source: TransXNet, arXiv 2310.19380, section 3 (IDConv). Means, generator and convolution are one autograd function: the
two gradients of x are added in one pass, and the gradients of the kernels, `[N, C, K * K + 1]`, are passed on in the
layout in which the convolution writes them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.kernels.common.depthwise_conv import convolve
from transxnet.kernels.idconv.generator import MAX_HIDDEN, GeneratorOutput, GeneratorParameters, generate_kernels
from transxnet.kernels.idconv.generator_gradients import generate_kernels_gradient
from transxnet.kernels.idconv.means import adaptive_means, adaptive_means_gradient

__all__ = ["MAX_HIDDEN", "dynamic_conv", "dynamic_conv_backward", "dynamic_conv_forward", "dynamic_conv_reference"]


def dynamic_conv_reference(
    x: Tensor, squeeze: Tensor, norm: nn.BatchNorm2d, expand: Tensor, offset: Tensor, taps: Tensor, bias: Tensor
) -> Tensor:
    """Return y in plain PyTorch; shapes as in `dynamic_conv`."""
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


def dynamic_conv_forward(
    x: Tensor, parameters: GeneratorParameters, norm: nn.BatchNorm2d, out: Tensor
) -> GeneratorOutput:
    """Write what `dynamic_conv` returns to `out`, and return what the backward needs.

    `x` is contiguous; `out` may be a slice along the channels of a contiguous tensor.
    """
    generated = generate_kernels(adaptive_means(x, parameters.taps.shape[-1]), parameters, norm)
    convolve(x, generated.kernels, out=out)
    return generated


def dynamic_conv_backward(
    grad: Tensor, x: Tensor, generated: GeneratorOutput, parameters: GeneratorParameters
) -> tuple[Tensor, GeneratorParameters]:
    """Return the gradients of `x` and of the parameters.

    `grad`, the output's gradient, may be a slice along the channels of a contiguous tensor.
    """
    dx, dkernels = convolve(grad, generated.kernels, forward_input=x)
    dpooled, dparameters = generate_kernels_gradient(dkernels, generated, parameters)
    adaptive_means_gradient(dpooled, dx, parameters.taps.shape[-1])
    return dx, dparameters


class _DynamicConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: nn.BatchNorm2d, *parameters: Tensor) -> Tensor:
        out = torch.empty_like(x)
        *saved, taps_stats, bias_stats = dynamic_conv_forward(x, GeneratorParameters(*parameters), norm, out)
        ctx.stats = taps_stats, bias_stats
        ctx.save_for_backward(x, *saved, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, kernels, pooled, hidden, *parameters = ctx.saved_tensors
        generated = GeneratorOutput(kernels, pooled, hidden, *ctx.stats)
        dx, dparameters = dynamic_conv_backward(
            grad_outputs[0].contiguous(), x, generated, GeneratorParameters(*parameters)
        )
        return dx, None, *dparameters


def dynamic_conv(
    x: Tensor, squeeze: Tensor, norm: nn.BatchNorm2d, expand: Tensor, offset: Tensor, taps: Tensor, bias: Tensor
) -> Tensor:
    """Convolve each sample of `x` with the kernels generated from it.

    Args:
        x: `[N, C, H, W]` in fp32, bf16 or fp16. Parameters are in fp32.
        squeeze: `[R, C, 1, 1]`, R at most `MAX_HIDDEN`.
        norm: norm of R channels; in training it takes separate statistics of the taps' positions and of the bias's
            position, and updates its running statistics twice.
        expand: `[G * C, R, 1, 1]`.
        offset: `[G * C]`, added to the logits.
        taps: `[G, C, K, K]`, K odd and at most 7.
        bias: `[G, C]`.

    Raises:
        ValueError: a batch in training has a single sample.
    """
    assert len(squeeze) <= MAX_HIDDEN
    parameters = GeneratorParameters(squeeze, norm.weight, norm.bias, expand, offset, taps, bias)
    return _DynamicConvFunction.apply(x.contiguous(), norm, *parameters)
