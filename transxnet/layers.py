"""The small layers that stem, mixer and feed-forward share.

In the reference backend every parameter is used in the forward of the module that owns it, because ZeRO stage 3 gathers
parameters around each module's own forward. The kernels reach into a block's children: see `leaf_modules`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.backend import norm_is_plain, use_triton
from transxnet.config import Backend

__all__ = ["ConvNorm", "DropPath", "PositionBias", "ScaledResidual", "gelu_norm", "in_autocast_dtype"]


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


def gelu_norm(x: Tensor, norm: nn.BatchNorm2d, backend: Backend) -> Tensor:
    """`norm(gelu(x))` for `[N, C, H, W]`."""
    if norm_is_plain(norm) and use_triton(backend, x):
        from transxnet.kernels.norm_act import gelu_batch_norm

        return gelu_batch_norm(x, norm)
    return norm(F.gelu(x))


def in_autocast_dtype(x: Tensor) -> Tensor:
    """`x` as autocast would give it to a convolution: in the low precision while autocast is on, else as it is."""
    kind = x.device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


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

    def forward(self, skip: Tensor, branch: Tensor, addend: Tensor | None = None) -> Tensor:
        """Add `branch` to `skip`; all are `[N, C, H, W]`. `addend` joins the branch after its norm."""
        factor = self.drop_path(branch)
        if norm_is_plain(self.norm) and use_triton(self.backend, branch):
            from transxnet.kernels.residual import scaled_residual

            return scaled_residual(skip, branch, self.norm, self.weight, self.bias, factor, addend)
        branch = self.norm(branch)
        if addend is not None:
            branch = branch + addend
        weight = self.weight.view(1, -1, 1, 1).to(branch.dtype)
        bias = self.bias.view(1, -1, 1, 1).to(branch.dtype)
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
