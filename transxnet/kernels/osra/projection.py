"""OSRA's projections to queries, keys and values: plain 1x1 convolutions over `[N, C, H, W]`.

    o = M x + offset        d x = M^T g        d M = sum of g x^T        d offset = sum of g

Here g is the gradient of o, and sums are over all pixels. M is [O, C].
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from transxnet.kernels.common.linear import matrix_gradient, multiply

__all__ = ["projection", "projection_reference"]


def projection_reference(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Return `M x + offset` in plain PyTorch."""
    return F.conv2d(x, matrix, offset)


class _ProjectionFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
        low_matrix = matrix.flatten(1).to(x.dtype)
        ctx.save_for_backward(x, low_matrix)
        ctx.like = matrix.shape, matrix.dtype, offset.dtype
        return multiply(x, low_matrix, offset)[0]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, low_matrix = ctx.saved_tensors
        shape, dtype, offset_dtype = ctx.like
        grad = grad_outputs[0].contiguous()
        dmatrix, doffset = matrix_gradient(grad, x, None).sum(0).split([low_matrix.numel(), len(low_matrix)])
        dx = multiply(grad, low_matrix, None, transposed=True)[0]
        return dx, dmatrix.view(shape).to(dtype), doffset.to(offset_dtype)


def projection(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Return the 1x1 convolution of `x`, `[N, O, H, W]`.

    Args:
        x: `[N, C, H, W]` in fp32, bf16 or fp16.
        matrix: `[O, C, 1, 1]`.
        offset: `[O]`.
    """
    return _ProjectionFunction.apply(x.contiguous(), matrix, offset)
