"""Small layers that stem, mixer and feed-forward share.

ZeRO stage 3 gathers parameters around the forward of a module, or of a whole block (`leaf_modules`). So a parameter is
used only within the forward of the module that owns it, or of the block around that module.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.attention import stage_bias
from transxnet.backend import norm_has_kernels, norm_is_plain, use_triton
from transxnet.config import Backend

if TYPE_CHECKING:
    from transxnet.kernels.common.statistics import PartialStats

__all__ = ["Branch", "ConvNorm", "DropPath", "PositionBias", "ScaledResidual", "fork_group_norm", "in_autocast_dtype"]


class ConvNorm(nn.Module):
    """Convolution without bias and BatchNorm: `[N, C_in, H, W]` to `[N, C_out, H', W']`."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return `norm(conv(x))`."""
        return self.norm(self.conv(x))


class DropPath(nn.Module):
    """Stochastic depth: each sample drops the branch at `rate`; branches kept are scaled by 1 / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor | None:
        """Return a factor for each sample, `[N, 1, 1, 1]` in the dtype of `x`, or None if all keep the branch."""
        if not self.training or self.rate == 0.0:
            return None
        keep = 1.0 - self.rate
        return x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        """Show the rate in `print(model)`."""
        return f"rate={self.rate:.3f}"


class Branch(NamedTuple):
    """A block's branch before its last BatchNorm, `[N, C, H, W]`: the input of a `ScaledResidual`."""

    values: Tensor
    addend: Tensor | None = None
    """`[N, C, H, W]`, added to the branch after the norm."""
    partial_stats: "PartialStats | None" = None
    """Partial statistics of `values` for the norm, from the kernel that wrote them."""


def in_autocast_dtype(x: Tensor) -> Tensor:
    """Return `x` as autocast casts it for a convolution: in the low precision if autocast is on, else as is."""
    return x.to(_autocast_dtype(x))


def _autocast_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def fork_group_norm(
    x: Tensor, norm: nn.GroupNorm, backend: Backend, parts: int = 1
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return `norm(x)` for a branch, in `parts` along the channels, and `x` `[N, C, H, W]` for the skip connection.

    Use the `x` returned: the kernel then adds its gradient and the norm's in one pass.
    """
    if use_triton(backend, x, "group_norm"):
        from transxnet.kernels import group_norm

        return group_norm.fork_group_norm(x, norm, parts, _autocast_dtype(x))
    return norm(x).chunk(parts, dim=1), x


class ScaledResidual(nn.Module):
    """The end of a branch: `skip + drop_path(weight * (norm(branch) + addend) + bias)`.

    It holds the branch's last BatchNorm, LayerScale (`weight`, `bias`), stochastic depth and the residual, because
    together they are one pass over memory. Upstream writes LayerScale as a depthwise 1x1 convolution; here it is a
    multiply and an add per channel. The weight keeps the convolution's shape `[C, 1, 1, 1]`, because an optimizer
    decides by the number of dimensions whether to decay it.
    """

    def __init__(self, dim: int, init: float, drop_path: float, backend: Backend) -> None:
        super().__init__()
        self.backend: Backend = backend
        self.norm = nn.BatchNorm2d(dim)
        self.weight = nn.Parameter(torch.full((dim, 1, 1, 1), init))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, skip: Tensor, inputs: Branch) -> Tensor:
        """Return `skip` `[N, C, H, W]` plus the scaled branch."""
        branch, addend, partial_stats = inputs
        factor = self.drop_path(branch)
        if norm_has_kernels(self.norm) and use_triton(self.backend, branch, "residual"):
            from transxnet.kernels.residual import scaled_residual

            return scaled_residual(skip, branch, self.norm, self.weight, self.bias, factor, addend, partial_stats)
        weight, bias = self.weight.view(-1), self.bias
        if norm_is_plain(self.norm):
            branch = _batch_norm(
                branch, self.norm, self.norm.weight * weight, torch.addcmul(bias, self.norm.bias, weight)
            )
        else:
            branch = torch.addcmul(_per_channel(bias, branch), self.norm(branch), _per_channel(weight, branch))
        if addend is not None:
            branch = torch.addcmul(branch, addend, _per_channel(weight, branch))
        return skip + branch if factor is None else torch.addcmul(skip, branch, factor)


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(1, -1, 1, 1).to(x.dtype)


def _batch_norm(x: Tensor, norm: nn.BatchNorm2d, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `norm(x)` with another weight and bias: folding LayerScale into them saves a pass over memory."""
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    assert norm.momentum is not None
    return F.batch_norm(x, norm.running_mean, norm.running_var, weight, bias, norm.training, norm.momentum, norm.eps)


class PositionBias(nn.Module):
    """A stage's learned bias on the attention logits, one table for all its blocks.

    The table is made for one image size. For another size upstream resizes it bicubically as an image of queries x keys
    in every block. Here its columns are resized once a stage, and its rows once a stage or, where there are many, as
    each block uses them.
    """

    def __init__(self, heads: int, queries: int, keys: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, heads, queries, keys))

    def forward(self, queries: int, keys: int) -> Tensor:
        """Return `stage_bias` of the table: `[1, heads, queries, keys]`, or with the table's rows to interpolate.

        It is always a new tensor, because ZeRO stage 3 frees the table when this forward ends.
        """
        return stage_bias(self.table, queries, keys)
