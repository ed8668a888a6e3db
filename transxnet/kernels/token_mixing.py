"""IDConv and attention side by side: each writes its half of the channels of one `[N, 2 C, H, W]` tensor.

This saves the concatenation in the forward and the split in the backward: both operators read their half of the
output's gradient from the one tensor.
"""

from typing import Any

import torch
from torch import Tensor, nn

from transxnet.kernels.idconv.dynamic_conv import dynamic_conv_backward, dynamic_conv_forward, dynamic_conv_reference
from transxnet.kernels.idconv.generator import GeneratorOutput, GeneratorParameters
from transxnet.kernels.osra.attention import attend, attend_gradient, attention_reference

__all__ = ["mix_tokens", "mix_tokens_reference"]


def mix_tokens_reference(
    x: Tensor, q: Tensor, kv: Tensor, bias: Tensor, norm: nn.BatchNorm2d, parameters: GeneratorParameters
) -> Tensor:
    """Return the concatenated outputs of both operators in plain PyTorch."""
    squeeze, _, _, *rest = parameters
    return torch.cat((dynamic_conv_reference(x, squeeze, norm, *rest), attention_reference(q, kv, bias)), dim=1)


class _MixFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, q: Tensor, kv: Tensor, bias: Tensor, norm: nn.BatchNorm2d, *parameters: Tensor
    ) -> Tensor:
        n, c, height, width = x.shape
        out = torch.empty((n, 2 * c, height, width), dtype=x.dtype, device=x.device)
        local, attended = out.chunk(2, dim=1)
        *saved, taps_stats, bias_stats = dynamic_conv_forward(x, GeneratorParameters(*parameters), norm, local)
        rows = attend(q, kv, bias, attended)
        ctx.stats = taps_stats, bias_stats
        ctx.save_for_backward(x, q, kv, bias, None if rows is None else out, rows, *saved, *parameters)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, q, kv, bias, out, rows, kernels, pooled, hidden, *parameters = ctx.saved_tensors
        local, attended = grad_outputs[0].contiguous().chunk(2, dim=1)
        generated = GeneratorOutput(kernels, pooled, hidden, *ctx.stats)
        dx, dparameters = dynamic_conv_backward(local, x, generated, GeneratorParameters(*parameters))
        written = None if out is None else out.chunk(2, dim=1)[1]
        return dx, *attend_gradient(q, kv, bias, attended, written, rows), None, *dparameters


def mix_tokens(
    x: Tensor, q: Tensor, kv: Tensor, bias: Tensor, norm: nn.BatchNorm2d, parameters: GeneratorParameters
) -> Tensor:
    """Return `dynamic_conv` of `x` and `attention` of `q` to `kv`, concatenated along the channels: `[N, 2 C, H, W]`.

    Args:
        x: IDConv's input, `[N, C, H, W]` in fp32, bf16 or fp16.
        q: queries, `[N, C, H, W]`.
        kv: keys and values, `[N, 2 C, h, w]`.
        bias: position bias, `[1, heads, H W, h w]`, or with rows to interpolate, as in `attention`.
        norm: the norm of IDConv's kernel generator.
        parameters: of IDConv's kernel generator, fp32.

    Raises:
        ValueError: a batch in training has a single sample.
    """
    return _MixFunction.apply(x.contiguous(), q.contiguous(), kv.contiguous(), bias.contiguous(), norm, *parameters)
