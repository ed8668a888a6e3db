"""The feed-forward half of a TransXNet block (MS-FFN): expand, look around at four scales, contract."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.depthwise import DepthwiseConv
from transxnet.layers import ConvNorm

__all__ = ["MultiScaleConv", "MultiScaleFFN"]


class MultiScaleConv(nn.Module):
    """Depthwise convolutions of 1, 3, 5 and 7 taps a side, each on a quarter of the channels, with the input added."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        quarter = dim // 4
        self.split = (dim - 3 * quarter, quarter, quarter, quarter)
        self.convs = nn.ModuleList(
            DepthwiseConv(part, kernel) for part, kernel in zip(self.split, (1, 3, 5, 7), strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same shape."""
        parts = [part.contiguous(memory_format=_format(x)) for part in x.split(self.split, dim=1)]
        return torch.cat([conv(part) + part for conv, part in zip(self.convs, parts, strict=True)], dim=1)


def _format(x: Tensor) -> torch.memory_format:
    nhwc = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if nhwc else torch.contiguous_format


class MultiScaleFFN(nn.Module):
    """MS-FFN: 1x1 expansion, multi-scale depthwise convolution with a residual, 1x1 contraction.

    GELU stands before BatchNorm here, the other way round from most networks.
    """

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(dim, dim * ratio, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(dim * ratio)
        self.multiscale = MultiScaleConv(dim * ratio)
        self.norm2 = nn.BatchNorm2d(dim * ratio)
        self.contract = ConvNorm(dim * ratio, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same shape."""
        hidden = self.norm1(F.gelu(self.expand(x)))
        hidden = self.norm2(F.gelu(self.multiscale(hidden)))
        return self.contract(hidden)
