"""IDConv and attention side by side: each writes its half of the channels of one `[N, 2 C, H, W]`.

So nothing is put together in the forward, nor taken apart in the backward: the two read the gradient where it lies.
"""

from typing import Any

import torch
from torch import Tensor, nn

from transxnet.kernels.attention import attend, attend_gradient, attention_reference
from transxnet.kernels.dynamic_conv import convolve_own, convolve_own_gradient, dynamic_conv_reference
from transxnet.kernels.kernel_generation import Generated, Generator

__all__ = ["mix_tokens", "mix_tokens_reference"]


def mix_tokens_reference(
    x: Tensor, q: Tensor, kv: Tensor, bias: Tensor, norm: nn.BatchNorm2d, made_with: Generator
) -> Tensor:
    """Both operators in plain PyTorch."""
    squeeze, _, _, *rest = made_with
    return torch.cat((dynamic_conv_reference(x, squeeze, norm, *rest), attention_reference(q, kv, bias)), dim=1)


class _MixFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, q: Tensor, kv: Tensor, bias: Tensor, norm: nn.BatchNorm2d, *parameters: Tensor
    ) -> Tensor:
        n, c, height, width = x.shape
        out = torch.empty((n, 2 * c, height, width), dtype=x.dtype, device=x.device)
        local, attended = out.chunk(2, dim=1)
        *saved, of_taps, of_bias = convolve_own(x, Generator(*parameters), norm, local)
        attend(q, kv, bias, attended)
        ctx.stats = of_taps, of_bias
        ctx.save_for_backward(x, q, kv, bias, *saved, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, q, kv, bias, kernels, pooled, hidden, *parameters = ctx.saved_tensors
        local, attended = grad_outputs[0].contiguous().chunk(2, dim=1)
        generated = Generated(kernels, pooled, hidden, *ctx.stats)
        dx, dparameters = convolve_own_gradient(local, x, generated, Generator(*parameters))
        return dx, *attend_gradient(q, kv, bias, attended), None, *dparameters


def mix_tokens(x: Tensor, q: Tensor, kv: Tensor, bias: Tensor, norm: nn.BatchNorm2d, made_with: Generator) -> Tensor:
    """`dynamic_conv` of `x` and `attention` of `q` to `kv` with `bias`, `[N, C, H, W]` each, as one `[N, 2 C, H, W]`.

    Raises:
        ValueError: training on a single sample.
    """
    return _MixFunction.apply(x.contiguous(), q.contiguous(), kv.contiguous(), bias.contiguous(), norm, *made_with)
