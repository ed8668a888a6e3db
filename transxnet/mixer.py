"""The token mixer of a TransXNet block (D-Mixer): IDConv on one half of the channels, OSRA on the other, then STE.

Source: Lou et al., "TransXNet: Learning Both Global and Local Dynamics with a Dual Dynamic Token Mixer for Visual
Recognition", arXiv 2310.19380, section 3.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.attention import FEW_KEYS
from transxnet.attention import attention as reference_attention
from transxnet.backend import norm_has_kernels, use_triton
from transxnet.config import Backend
from transxnet.depthwise import DepthwiseConv, depthwise_conv
from transxnet.layers import Branch, ConvNorm, in_autocast_dtype
from transxnet.resample import adaptive_mean

if TYPE_CHECKING:
    from transxnet.kernels.idconv.generator import GeneratorParameters

__all__ = ["DynamicConv", "SpatialReduction", "SpatialReductionAttention", "TokenEnhancement", "TokenMixer"]


class DynamicConv(nn.Module):
    """IDConv: depthwise convolution whose kernels are mixed per sample from `groups` learned kernels.

    The mixing weights are computed from the input itself, pooled to the size of the kernel: for every tap and channel a
    softmax over the groups. The bias is mixed likewise, from the global mean.
    """

    def __init__(self, dim: int, groups: int, backend: Backend, *, kernel: int = 7, reduction: int = 4) -> None:
        super().__init__()
        self.backend: Backend = backend
        self.groups = groups
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(groups, dim, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(groups, dim))
        self.squeeze = ConvNorm(dim, dim // reduction, 1)
        self.expand = nn.Conv2d(dim // reduction, dim * groups, 1)

    def mixing(self, pooled: Tensor) -> Tensor:
        """Return the softmax over the groups, `[N, groups, C, K, K]`, of pooled inputs `[N, C, K, K]`."""
        logits = self.expand(F.gelu(self.squeeze(pooled)))
        return torch.softmax(logits.unflatten(1, (self.groups, -1)), dim=1)

    def kernels(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return each sample's weights `[N, C, K, K]` and bias `[N, C]`.

        The generator runs twice, as upstream: in training its BatchNorm takes separate statistics of the two inputs.
        """
        weight = (self.mixing(adaptive_mean(x, self.kernel)) * self.weight).sum(1)
        mixing = self.mixing(x.mean((-2, -1), keepdim=True)).flatten(2)
        return weight, (mixing * self.bias).sum(1)

    def has_kernels(self, x: Tensor) -> bool:
        """Return whether the Triton kernels compute the convolution of `x`."""
        if not use_triton(self.backend, x, "dynamic_conv"):
            return False
        from transxnet.kernels.idconv.dynamic_conv import MAX_HIDDEN

        return norm_has_kernels(self.squeeze.norm) and len(self.squeeze.conv.weight) <= MAX_HIDDEN

    def generator_parameters(self) -> "GeneratorParameters":
        """Return the parameters in the form the kernels take."""
        from transxnet.kernels.idconv.generator import GeneratorParameters

        squeeze, expand = self.squeeze, self.expand
        assert expand.bias is not None
        norm = squeeze.norm
        return GeneratorParameters(
            squeeze.conv.weight, norm.weight, norm.bias, expand.weight, expand.bias, self.weight, self.bias
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` `[N, C, H, W]` convolved with its own kernels, of the same shape."""
        if self.has_kernels(x):
            from transxnet.kernels.idconv.dynamic_conv import dynamic_conv

            squeeze, _, _, *rest = self.generator_parameters()
            return dynamic_conv(in_autocast_dtype(x), squeeze, self.squeeze.norm, *rest)
        n, c, h, w = x.shape
        weight, bias = self.kernels(x)
        as_one = x.reshape(1, n * c, h, w)
        out = depthwise_conv(as_one, weight.reshape(n * c, 1, self.kernel, self.kernel), bias.reshape(n * c))
        return out.reshape(n, c, h, w)


def attention_operator(bias: Tensor) -> str:
    """Return the name of the operator that computes attention with `bias`: few keys and many have kernels each."""
    return "attention" if bias.shape[3] <= FEW_KEYS else "attention_many_keys"


class SpatialReduction(nn.Module):
    """OSRA's overlapping reduction of keys and values: a strided depthwise convolution, then a scale per channel."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.reduce = ConvNorm(dim, dim, ratio + 3, stride=ratio, groups=dim)
        self.scale = ConvNorm(dim, dim, 1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return the reduced map, `[N, C, ceil(H / ratio), ceil(W / ratio)]`, of `[N, C, H, W]`."""
        return self.scale(F.gelu(self.reduce(x)))


class SpatialReductionAttention(nn.Module):
    """OSRA: attention from all positions to a coarse grid of keys, with a learned bias for each pair of positions."""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int, backend: Backend) -> None:
        super().__init__()
        self.backend: Backend = backend
        self.num_heads = num_heads
        self.q = nn.Conv2d(dim, dim, 1)
        self.kv = nn.Conv2d(dim, dim * 2, 1)
        self.reduction = SpatialReduction(dim, sr_ratio) if sr_ratio > 1 else nn.Identity()
        self.local_conv = DepthwiseConv(dim, 3, residual=True)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Return attention of `x` `[N, C, H, W]` with the stage's `bias`, shaped like `x`."""
        return self.attend(*self.project(x), bias)

    def attend(self, q: Tensor, kv: Tensor, bias: Tensor) -> Tensor:
        """Return attention of the projected `q` and `kv`, `[N, C, H, W]`."""
        if use_triton(self.backend, q, attention_operator(bias)):
            from transxnet.kernels.osra.attention import attention

            return attention(q, kv, bias)
        return reference_attention(q, kv, bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the queries `[N, C, H, W]`, and the keys and values `[N, 2 C, h, w]`."""
        reduction = self.reduction
        norms = (reduction.reduce.norm, reduction.scale.norm) if isinstance(reduction, SpatialReduction) else ()
        if use_triton(self.backend, x, "projection") and all(norm_has_kernels(norm) for norm in norms):
            return self._project(in_autocast_dtype(x))
        return self.q(x), self.kv(self.local_conv(reduction(x)))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        from transxnet.kernels.common.depthwise_conv import fork_depthwise_conv
        from transxnet.kernels.osra.projection import projection
        from transxnet.kernels.osra.spatial_reduction import fork_spatial_reduction

        q, kv, local, reduction = self.q, self.kv, self.local_conv, self.reduction
        assert q.bias is not None
        assert kv.bias is not None
        assert local.bias is not None
        if isinstance(reduction, SpatialReduction):
            reduce, scale = reduction.reduce, reduction.scale
            reduced, x = fork_spatial_reduction(
                x, reduce.conv.stride[0], reduce.conv.weight, reduce.norm, scale.conv.weight, scale.norm, local.weight,
                local.bias,
            )  # fmt: skip
        else:
            reduced, x = fork_depthwise_conv(x, local.weight, local.bias, residual=True)
        return projection(x, q.weight, q.bias), projection(reduced, kv.weight, kv.bias)


class TokenEnhancement(nn.Module):
    """STE: lets the two halves exchange information: depthwise 3x3, squeeze, expand, and the input added.

    Its last BatchNorm and its residual are in the `ScaledResidual` that follows.
    """

    def __init__(self, dim: int, backend: Backend, *, reduction: int = 8, min_inner: int = 16) -> None:
        super().__init__()
        self.backend: Backend = backend
        inner = max(min_inner, dim // reduction)
        self.depthwise = DepthwiseConv(dim, 3)
        self.norm1 = nn.BatchNorm2d(dim)
        self.squeeze = nn.Conv2d(dim, inner, 1)
        self.norm2 = nn.BatchNorm2d(inner)
        self.expand = nn.Conv2d(inner, dim, 1)

    def forward(self, x: Tensor) -> Branch:
        """Return the branch before its last BatchNorm, with `x` `[N, C, H, W]` as the addend."""
        if norm_has_kernels(self.norm1) and norm_has_kernels(self.norm2) and use_triton(self.backend, x, "enhancement"):
            from transxnet.kernels.common.depthwise_conv import fork_depthwise_conv
            from transxnet.kernels.common.linear import gelu_norm_linear

            squeeze, expand = self.squeeze, self.expand
            assert self.depthwise.bias is not None
            hidden, x = fork_depthwise_conv(in_autocast_dtype(x), self.depthwise.weight, self.depthwise.bias)
            hidden, partial_stats = gelu_norm_linear(hidden, self.norm1, squeeze.weight, squeeze.bias, out_gelu=True)
            hidden, partial_stats = gelu_norm_linear(hidden, self.norm2, expand.weight, expand.bias, partial_stats)
            return Branch(hidden, x, partial_stats)
        hidden = self.squeeze(self.norm1(F.gelu(self.depthwise(x))))
        return Branch(self.expand(self.norm2(F.gelu(hidden))), x)


class TokenMixer(nn.Module):
    """D-Mixer: IDConv on the first half of the channels, OSRA on the second, STE over both."""

    def __init__(self, dim: int, *, num_groups: int, num_heads: int, sr_ratio: int, backend: Backend) -> None:
        super().__init__()
        self.local = DynamicConv(dim // 2, num_groups, backend)
        self.attention = SpatialReductionAttention(dim // 2, num_heads, sr_ratio, backend)
        self.enhancement = TokenEnhancement(dim, backend)

    def forward(self, local: Tensor, attended: Tensor, bias: Tensor) -> Branch:
        """Return the mixed halves `[N, C / 2, H, W]` as a branch `[N, C, H, W]`; `bias` is the stage's."""
        return self.enhancement(self.mix(local, attended, bias))

    def mix(self, local: Tensor, attended: Tensor, bias: Tensor) -> Tensor:
        """Return IDConv of `local` and OSRA of `attended`, concatenated along the channels: `[N, C, H, W]`."""
        operators = ("token_mixing", attention_operator(bias))
        if self.local.has_kernels(local) and all(use_triton(self.local.backend, local, name) for name in operators):
            from transxnet.kernels.token_mixing import mix_tokens

            q, kv = self.attention.project(attended)
            norm, parameters = self.local.squeeze.norm, self.local.generator_parameters()
            return mix_tokens(in_autocast_dtype(local), q, kv, bias, norm, parameters)
        return torch.cat((self.local(local), self.attention(attended, bias)), dim=1)
