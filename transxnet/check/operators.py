"""The operators with kernels, as small networks that run on either backend."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transxnet.attention import stage_bias
from transxnet.config import Backend
from transxnet.depthwise import PositionConv
from transxnet.ffn import MultiScaleFFN
from transxnet.layers import Branch, ScaledResidual, fork_group_norm
from transxnet.mixer import DynamicConv, SpatialReductionAttention, TokenEnhancement, TokenMixer

__all__ = ["OPERATORS", "Operator", "Shape"]


@dataclass(frozen=True)
class Shape:
    """A map `[batch, channels, height, width]`."""

    batch: int
    channels: int
    height: int
    width: int

    @property
    def pixels(self) -> int:
        """Number of pixels of a sample."""
        return self.height * self.width


class _Network(nn.Module):
    """An operator of a block, alone: it takes a map `[N, C, H, W]` and returns one tensor."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.backend: Backend = backend


class _GroupNorm(_Network):
    def __init__(self, shape: Shape, backend: Backend) -> None:
        super().__init__(backend)
        self.norm = nn.GroupNorm(1, shape.channels)

    def forward(self, x: Tensor) -> Tensor:
        halves, skip = fork_group_norm(x, self.norm, self.backend, parts=2)
        return torch.cat((*halves, 0.5 * skip), dim=1)


class _Residual(_Network):
    def __init__(self, shape: Shape, backend: Backend) -> None:
        super().__init__(backend)
        self.residual = ScaledResidual(shape.channels, 0.5, 0.0, backend)

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x, Branch(x.flip(1), x.flip(2)))


class _Projection(_Network):
    def __init__(self, shape: Shape, backend: Backend) -> None:
        super().__init__(backend)
        self.whole = SpatialReductionAttention(shape.channels, 1, 1, backend)
        self.reduced = SpatialReductionAttention(shape.channels, 1, 2, backend)

    def forward(self, x: Tensor) -> Tensor:
        parts = [part.flatten() for attention in (self.whole, self.reduced) for part in attention.project(x)]
        return torch.cat(parts)


class _Attention(_Network):
    """Attention of a map to a corner of itself, whose pixels are the keys and the values."""

    def __init__(self, shape: Shape, backend: Backend, keys: tuple[int, int], rows: int) -> None:
        super().__init__(backend)
        self.keys = keys
        self.attention = SpatialReductionAttention(shape.channels, 2, 1, backend)
        columns = keys[0] * keys[1]
        # Many keys take another table, whose rows and columns the operator interpolates.
        size = (rows, 49) if columns > 49 else (shape.pixels, columns)
        self.table = nn.Parameter(torch.zeros(1, 2, *size))

    def forward(self, x: Tensor) -> Tensor:
        reduced = x[:, :, : self.keys[0], : self.keys[1]].contiguous()
        bias = stage_bias(self.table, x.shape[2:].numel(), reduced.shape[2:].numel())
        return self.attention.attend(x, torch.cat((reduced, reduced.flip(1)), dim=1), bias)


class _TokenMixing(_Network):
    def __init__(self, shape: Shape, backend: Backend) -> None:
        super().__init__(backend)
        self.mixer = TokenMixer(2 * shape.channels, num_groups=2, num_heads=2, sr_ratio=8, backend=backend)
        keys = -(-shape.height // 8) * -(-shape.width // 8)
        self.table = nn.Parameter(torch.zeros(1, 2, shape.pixels, keys))
        self.keys = keys

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer.mix(x, x.flip(1), stage_bias(self.table, x.shape[2:].numel(), self.keys))


class _BranchOf(_Network):
    """An operator that ends in a branch; its values are the output."""

    def __init__(self, network: nn.Module, backend: Backend) -> None:
        super().__init__(backend)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).values


@dataclass(frozen=True)
class Operator:
    """An operator with kernels.

    Attributes:
        name: as `use_triton` takes it.
        build: makes the operator's network for maps of a shape.
        awkward: the shape on which it is compared.
        typical: the shape on which it is timed.
    """

    name: str
    build: Callable[[Shape, Backend], nn.Module]
    awkward: Shape
    typical: Shape


def _operator(name: str, build: Callable[[Shape, Backend], nn.Module], channels: int = 38) -> Operator:
    return Operator(name, build, Shape(3, channels, 9, 13), Shape(32, 48, 56, 56))


OPERATORS = (
    _operator("group_norm", _GroupNorm),
    _operator("position", lambda shape, backend: PositionConv(shape.channels, backend), 19),
    _operator("projection", _Projection, 19),
    _operator("attention", lambda shape, backend: _Attention(shape, backend, (7, 7), 0)),
    _operator("attention_many_keys", lambda shape, backend: _Attention(shape, backend, (9, 13), 25)),
    _operator("dynamic_conv", lambda shape, backend: DynamicConv(shape.channels, 2, backend), 19),
    _operator("token_mixing", _TokenMixing),
    _operator("enhancement", lambda shape, backend: _BranchOf(TokenEnhancement(shape.channels, backend), backend), 19),
    _operator("ms_ffn", lambda shape, backend: _BranchOf(MultiScaleFFN(shape.channels, 2, backend), backend), 11),
    _operator("residual", _Residual, 19),
)
"""All operators that `use_triton` names."""
