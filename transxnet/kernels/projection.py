"""Queries, keys and values: 1x1 convolutions over `[N, C, H, W]` with nothing before or behind them.

o = M x + offset        d x = M^T g        d M = sum of g x^T        d offset = sum of g
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from transxnet.kernels.linear import matrix_gradient, multiply

__all__ = ["projection", "projection_reference"]


def projection_reference(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """The first formula in plain PyTorch."""
    return F.conv2d(x, matrix, offset)


class _ProjectionFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
        low = matrix.flatten(1).to(x.dtype)
        ctx.save_for_backward(x, low)
        ctx.like = matrix.shape, matrix.dtype, offset.dtype
        return multiply(x, low, offset)[0]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, low = ctx.saved_tensors
        shape, dtype, offset_dtype = ctx.like
        grad = grad_outputs[0].contiguous()
        dmatrix, doffset = matrix_gradient(grad, x, None).sum(0).split([low.numel(), len(low)])
        dx = multiply(grad, low, None, turned=True)[0]
        return dx, dmatrix.view(shape).to(dtype), doffset.to(offset_dtype)


def projection(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """`x` is `[N, C, H, W]` in fp32, bf16 or fp16, `matrix` `[O, C, 1, 1]`, `offset` `[O]`."""
    return _ProjectionFunction.apply(x.contiguous(), matrix, offset)
