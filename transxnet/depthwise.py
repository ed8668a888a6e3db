"""Depthwise convolution with gradients that are fast on CPUs.

The input's gradient is computed as a convolution of the output's gradient with flipped taps, which takes PyTorch's fast
forward; PyTorch's own backward takes up to fifty times as long. PyTorch's CPU library has a fast weight gradient for
depthwise kernels of up to three columns and falls back to a plain loop for wider ones, fourteen times as slow for 7x7
on `[8, 48, 56, 56]`. The gradient of a kernel column does not depend on the other columns, so a wider kernel is
processed three columns at a time on shifted views of the input. The sums are the same.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn import grad as nn_grad

from transxnet.backend import use_triton
from transxnet.config import Backend
from transxnet.layers import in_autocast_dtype

__all__ = ["DepthwiseConv", "PositionConv", "depthwise_conv"]

FAST_COLUMNS = 3


def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor, *, residual: bool = False) -> Tensor:
    """Return the depthwise convolution of `x` at stride 1 with the same size, plus `x` if `residual`.

    `x` is `[N, C, H, W]`, `weight` is `[C, 1, K, K]` with odd K, `bias` is `[C]`.
    """
    if residual and x.device.type == "cpu" and x.dtype == in_autocast_dtype(x).dtype == torch.float32:
        # Adding 1 to the middle tap adds x in the same pass. In a lower precision the tap would lose its digits.
        middle = F.pad(weight.new_ones(1, 1, 1, 1), (weight.shape[-1] // 2,) * 4)
        return depthwise_conv(x, weight + middle, bias)
    if residual:
        return x + depthwise_conv(x, weight, bias)
    if x.device.type == "cpu" and weight.shape[-1] > FAST_COLUMNS and not torch.compiler.is_compiling():
        return _DepthwiseFunction.apply(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1])


class DepthwiseConv(nn.Conv2d):
    """Depthwise `nn.Conv2d` of odd size at stride 1, computed by `depthwise_conv`, with the same state dict.

    With `residual` the input is added to the output.
    """

    def __init__(self, dim: int, kernel: int, *, residual: bool = False) -> None:
        super().__init__(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.residual = residual

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `[N, C, H, W]`, of the same shape."""
        assert self.bias is not None
        return depthwise_conv(input, self.weight, self.bias, residual=self.residual)


class PositionConv(DepthwiseConv):
    """`x + conv(x)` with a depthwise 7x7 convolution: the position embedding of a block."""

    def __init__(self, dim: int, backend: Backend) -> None:
        super().__init__(dim, 7, residual=True)
        self.backend: Backend = backend

    def forward(self, input: Tensor) -> Tensor:
        """Return `x + conv(x)` of `[N, C, H, W]`, of the same shape."""
        if use_triton(self.backend, input, "position"):
            from transxnet.kernels.common import depthwise_conv as kernels

            assert self.bias is not None
            return kernels.depthwise_conv(in_autocast_dtype(input), self.weight, self.bias)
        return super().forward(input)


def _weight_gradient(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of the weight `[C, 1, K, K]`, in the dtype of `grad`."""
    channels, _, kernel, _ = weight.shape
    reach, width = kernel // 2, x.shape[-1]
    padded = F.pad(x, (reach, reach))
    columns = []
    for start in range(0, kernel, FAST_COLUMNS):
        count = min(FAST_COLUMNS, kernel - start)
        view = padded[..., start : start + width + count - 1]
        shape = [channels, 1, kernel, count]
        padding: Any = (reach, 0)
        columns.append(nn_grad.conv2d_weight(view, shape, grad, padding=padding, groups=channels))
    return torch.cat(columns, dim=-1)


class _DepthwiseFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        grad = grad_outputs[0]
        channels, padding = x.shape[1], weight.shape[-1] // 2
        # Under autocast the forward ran in a lower precision than that of its inputs, and so does the backward.
        low_x, low_weight = x.to(grad.dtype), weight.to(grad.dtype)
        grad_x = grad_weight = grad_bias = None
        if needs[0]:
            grad_x = F.conv2d(grad, low_weight.flip(2, 3), padding=padding, groups=channels).to(x.dtype)
        if needs[1]:
            grad_weight = _weight_gradient(low_x, weight, grad).to(weight.dtype)
        if needs[2]:
            grad_bias = grad.sum((0, 2, 3)).to(weight.dtype)
        return grad_x, grad_weight, grad_bias
