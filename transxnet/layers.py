"""The small layers that stem, mixer and feed-forward share.

Every parameter is used in the forward of the module that owns it, or of that module's parent named in the docstring,
because ZeRO stage 3 gathers parameters around each module's own forward.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ConvNorm", "DropPath", "PositionBias", "ScaledResidual"]


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


class ScaledResidual(nn.Module):
    """`skip + drop_path(weight * branch + bias)`: LayerScale, stochastic depth and the residual in one place.

    Upstream writes LayerScale as a depthwise 1x1 convolution; it is a multiply and an add per channel. The weight keeps
    the convolution's shape `[C, 1, 1, 1]`, which is what decides whether an optimizer decays it.
    """

    def __init__(self, dim: int, init: float, drop_path: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((dim, 1, 1, 1), init))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, skip: Tensor, branch: Tensor) -> Tensor:
        """Add `branch` to `skip`, both `[N, C, H, W]`."""
        weight, bias = self.weight.view(1, -1, 1, 1), self.bias.view(1, -1, 1, 1)
        factor = self.drop_path(branch)
        if factor is not None:
            weight, bias = weight * factor, bias * factor
        return skip + torch.addcmul(bias, branch, weight)


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
