"""The feed-forward half of a TransXNet block (MS-FFN): expand, look around at four scales, contract."""

import torch
from torch import Tensor, nn

from transxnet.backend import norm_is_plain, use_triton
from transxnet.config import Backend
from transxnet.depthwise import DepthwiseConv
from transxnet.layers import gelu_norm, in_autocast_dtype

__all__ = ["MultiScaleConv", "MultiScaleFFN"]


class MultiScaleConv(nn.Module):
    """Depthwise convolutions of 1, 3, 5 and 7 taps a side, each on a quarter of the channels, with the input added."""

    def __init__(self, dim: int, backend: Backend) -> None:
        super().__init__()
        self.backend: Backend = backend
        quarter = dim // 4
        self.split = (dim - 3 * quarter, quarter, quarter, quarter)
        self.convs = nn.ModuleList(
            DepthwiseConv(part, kernel) for part, kernel in zip(self.split, (1, 3, 5, 7), strict=True)
        )

    def parameter_lists(self) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases in the order of the channels."""
        convs = [conv for conv in self.convs if isinstance(conv, DepthwiseConv)]
        return [conv.weight for conv in convs], [conv.bias for conv in convs if conv.bias is not None]

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same shape."""
        if use_triton(self.backend, x):
            from transxnet.kernels.depthwise_conv import multiscale_conv

            return multiscale_conv(in_autocast_dtype(x), *self.parameter_lists())
        parts = [part.contiguous(memory_format=_format(x)) for part in x.split(self.split, dim=1)]
        return torch.cat([conv(part) + part for conv, part in zip(self.convs, parts, strict=True)], dim=1)


def _format(x: Tensor) -> torch.memory_format:
    nhwc = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if nhwc else torch.contiguous_format


class MultiScaleFFN(nn.Module):
    """MS-FFN: 1x1 expansion, multi-scale depthwise convolution with a residual, 1x1 contraction.

    GELU stands before BatchNorm here, the other way round from most networks. The BatchNorm after the contraction
    belongs to the `ScaledResidual`.
    """

    def __init__(self, dim: int, ratio: int, backend: Backend) -> None:
        super().__init__()
        self.backend: Backend = backend
        self.expand = nn.Conv2d(dim, dim * ratio, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(dim * ratio)
        self.multiscale = MultiScaleConv(dim * ratio, backend)
        self.norm2 = nn.BatchNorm2d(dim * ratio)
        self.contract = nn.Conv2d(dim * ratio, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to the same shape, not yet normalised."""
        hidden = self.expand(x)
        if norm_is_plain(self.norm1) and norm_is_plain(self.norm2) and use_triton(self.backend, hidden):
            from transxnet.kernels.multiscale_ffn import norm_multiscale_norm

            weights, biases = self.multiscale.parameter_lists()
            return self.contract(norm_multiscale_norm(hidden, self.norm1, weights, biases, self.norm2))
        hidden = gelu_norm(hidden, self.norm1, self.backend)
        hidden = gelu_norm(self.multiscale(hidden), self.norm2, self.backend)
        return self.contract(hidden)
