"""The small layers that stem, mixer and feed-forward share.

A parameter is used in the forward of the module that owns it or of the block around it, because ZeRO stage 3 gathers
parameters around a module's own forward, and a block as a whole: see `leaf_modules`.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.backend import norm_has_kernels, norm_is_plain, use_triton
from transxnet.config import Backend

if TYPE_CHECKING:
    from transxnet.kernels.statistics import Pieces

__all__ = ["Branch", "ConvNorm", "DropPath", "PositionBias", "ScaledResidual", "fork_group_norm", "in_autocast_dtype"]


class ConvNorm(nn.Module):
    """Convolution without bias and BatchNorm: `[N, C_in, H, W]` to `[N, C_out, H', W']`."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim_in, dim_out, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve and normalise `x`."""
        return self.norm(self.conv(x))


class DropPath(nn.Module):
    """Stochastic depth: draws per sample whether a branch counts, and makes up for it by 1 / (1 - rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor | None:
        """Factor per sample, `[N, 1, 1, 1]` in the dtype of `x`; None where every sample keeps the branch."""
        if not self.training or self.rate == 0.0:
            return None
        keep = 1.0 - self.rate
        return x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        """The rate, in `print(model)`."""
        return f"rate={self.rate:.3f}"


class Branch(NamedTuple):
    """A block's branch before its last BatchNorm, `[N, C, H, W]`, as a `ScaledResidual` takes it."""

    values: Tensor
    addend: Tensor | None = None
    """Joins the branch after the norm."""
    pieces: "Pieces | None" = None
    """What the kernel that made `values` found for the norm."""


def in_autocast_dtype(x: Tensor) -> Tensor:
    """`x` as autocast would give it to a convolution: in the low precision while autocast is on, else as it is."""
    return x.to(_autocast_dtype(x))


def _autocast_dtype(x: Tensor) -> torch.dtype:
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return x.dtype
    return torch.get_autocast_dtype(kind)


def fork_group_norm(
    x: Tensor, norm: nn.GroupNorm, backend: Backend, parts: int = 1
) -> tuple[tuple[Tensor, ...], Tensor]:
    """`norm(x)` for a branch, in `parts` along the channels, and `x` `[N, C, H, W]` for what goes round the branch.

    Use the `x` returned: its gradient and the norm's are then one pass on the kernels.
    """
    if use_triton(backend, x):
        from transxnet.kernels import group_norm

        return group_norm.fork_group_norm(x, norm, parts, _autocast_dtype(x))
    return norm(x).chunk(parts, dim=1), x


class ScaledResidual(nn.Module):
    """The end of a branch: `skip + drop_path(weight * (norm(branch) + addend) + bias)`.

    The branch's last BatchNorm, LayerScale (`weight`, `bias`), stochastic depth and the residual, because together they
    are one pass over memory. Upstream writes LayerScale as a depthwise 1x1 convolution; it is a multiply and an add per
    channel. The weight keeps the convolution's shape `[C, 1, 1, 1]`, which decides whether an optimizer decays it.
    """

    def __init__(self, dim: int, init: float, drop_path: float, backend: Backend) -> None:
        super().__init__()
        self.backend: Backend = backend
        self.norm = nn.BatchNorm2d(dim)
        self.weight = nn.Parameter(torch.full((dim, 1, 1, 1), init))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, skip: Tensor, given: Branch) -> Tensor:
        """Add the branch to `skip`, `[N, C, H, W]`."""
        branch, addend, pieces = given
        factor = self.drop_path(branch)
        if norm_has_kernels(self.norm) and use_triton(self.backend, branch):
            from transxnet.kernels.residual import scaled_residual

            return scaled_residual(skip, branch, self.norm, self.weight, self.bias, factor, addend, pieces)
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
    """`norm(x)` with another affine part: LayerScale folded into it costs no pass over memory."""
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    assert norm.momentum is not None
    return F.batch_norm(x, norm.running_mean, norm.running_var, weight, bias, norm.training, norm.momentum, norm.eps)


class PositionBias(nn.Module):
    """A stage's learned bias on the attention logits, one table for all its blocks.

    The table is made for one image size. For another, upstream resizes it bicubically as an image of queries x keys, in
    every block; here once a stage.
    """

    def __init__(self, heads: int, queries: int, keys: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(1, heads, queries, keys))

    def forward(self, queries: int, keys: int) -> Tensor:
        """The bias `[1, heads, queries, keys]`.

        Always a tensor of its own: ZeRO stage 3 frees the table when this forward ends.
        """
        if self.table.shape[2:] == (queries, keys):
            return self.table.clone()
        return F.interpolate(self.table, size=(queries, keys), mode="bicubic", align_corners=False)
