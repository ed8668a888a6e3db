"""The feed-forward half of a TransXNet block (MS-FFN): expand, convolve at four scales, contract (arXiv 2310.19380)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.backend import norm_has_kernels, use_triton
from transxnet.config import Backend
from transxnet.depthwise import DepthwiseConv
from transxnet.layers import Branch, in_autocast_dtype

__all__ = ["MultiScaleConv", "MultiScaleFFN"]


class MultiScaleConv(nn.Module):
    """Depthwise convolutions with 1, 3, 5 and 7 taps a side, each on a quarter of the channels, plus the input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        quarter = dim // 4
        self.split = (dim - 3 * quarter, quarter, quarter, quarter)
        self.convs = nn.ModuleList(
            DepthwiseConv(part, kernel, residual=True) for part, kernel in zip(self.split, (1, 3, 5, 7), strict=True)
        )

    def parameter_lists(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return weights and biases of the four convolutions, in the order of the channels."""
        convs = [conv for conv in self.convs if isinstance(conv, DepthwiseConv)]
        return [conv.weight for conv in convs], [conv.bias for conv in convs if conv.bias is not None]

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolutions of `[N, C, H, W]` plus the input, of the same shape."""
        parts = [part.contiguous(memory_format=_format(x)) for part in x.split(self.split, dim=1)]
        return torch.cat([conv(part) for conv, part in zip(self.convs, parts, strict=True)], dim=1)


def _format(x: Tensor) -> torch.memory_format:
    nhwc = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if nhwc else torch.contiguous_format


class MultiScaleFFN(nn.Module):
    """MS-FFN: 1x1 expansion, multi-scale depthwise convolution with a residual, 1x1 contraction.

    Unlike in most networks, GELU precedes BatchNorm. The BatchNorm after the contraction is in the `ScaledResidual`
    that follows.
    """

    def __init__(self, dim: int, ratio: int, backend: Backend) -> None:
        super().__init__()
        self.backend: Backend = backend
        self.expand = nn.Conv2d(dim, dim * ratio, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(dim * ratio)
        self.multiscale = MultiScaleConv(dim * ratio)
        self.norm2 = nn.BatchNorm2d(dim * ratio)
        self.contract = nn.Conv2d(dim * ratio, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Branch:
        """Return the branch of `[N, C, H, W]`, of the same shape, before its last BatchNorm."""
        if norm_has_kernels(self.norm1) and norm_has_kernels(self.norm2) and use_triton(self.backend, x, "ms_ffn"):
            from transxnet.kernels.common.linear import gelu_norm_linear
            from transxnet.kernels.msffn.multiscale import expand_norm_multiscale

            x, weights = in_autocast_dtype(x), self.multiscale.parameter_lists()
            hidden, partial_stats = expand_norm_multiscale(x, self.expand.weight, self.norm1, *weights)
            out, partial_stats = gelu_norm_linear(hidden, self.norm2, self.contract.weight, None, partial_stats)
            return Branch(out, partial_stats=partial_stats)
        hidden = self.norm1(F.gelu(self.expand(x)))
        hidden = self.norm2(F.gelu(self.multiscale(hidden)))
        return Branch(self.contract(hidden))
