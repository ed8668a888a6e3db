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
        ctx.save_for_backward(x, matrix)
        ctx.offset_dtype = offset.dtype
        return multiply(x, matrix, offset)[0]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, matrix = ctx.saved_tensors
        grad = grad_outputs[0].contiguous()
        dmatrix, doffset = matrix_gradient(grad, x, None).sum(0).split([matrix.numel(), len(matrix)])
        dx = multiply(grad, matrix, None, turned=True)[0]
        return dx, dmatrix.view_as(matrix).to(matrix.dtype), doffset.to(ctx.offset_dtype)


def projection(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """`x` is `[N, C, H, W]` in fp32, bf16 or fp16, `matrix` `[O, C, 1, 1]`, `offset` `[O]`."""
    return _ProjectionFunction.apply(x.contiguous(), matrix, offset)
