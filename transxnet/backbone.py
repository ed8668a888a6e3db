"""TransXNet without its classifier: stem and four stages, and the norms that dense networks put on the stage maps."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from transxnet.backend import use_triton
from transxnet.block import Stage
from transxnet.check import check_kernels
from transxnet.config import STAGES, TransXNetConfig
from transxnet.layers import ConvNorm, in_autocast_dtype
from transxnet.mixer import DynamicConv

__all__ = ["Backbone", "FeatureNorms", "initialise"]


class FeatureNorms(nn.ModuleList):
    """A GroupNorm with one group on each of `stages`' maps; the other maps pass as they are.

    Upstream's dense backbone has them as `norm0`, `norm2`, `norm4` and `norm6`, for the stages 0 to 3. RetinaNet, which
    does not use the first map, has none on it.
    """

    def __init__(self, dims: Iterable[int], stages: Iterable[int]) -> None:
        stages = set(stages)
        super().__init__(nn.GroupNorm(1, dim) if k in stages else nn.Identity() for k, dim in enumerate(dims))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the maps `[N, dims[s], H_s, W_s]`, normalised, in the same shapes."""
        return [norm(x) for norm, x in zip(self, maps, strict=True)]


class Backbone(nn.Module):
    """Stem and stages of a `TransXNetConfig`, for images `[N, 3, H, W]` of any size.

    The modules hold the default initial values of PyTorch; whoever builds the whole network applies `initialise`.
    There is no `forward`: a classifier or a dense network is built on `forward_features`.

    Args:
        config: the network's configuration; `num_classes` is not used.
        norm_stages: the stages whose maps `forward_features` normalises.

    Attributes:
        config: the configuration it was built from.
    """

    def __init__(self, config: TransXNetConfig, norm_stages: Iterable[int] = ()) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = ConvNorm(3, config.dims[0], 7, stride=4)
        self.stages = nn.ModuleList(Stage(config, stage) for stage in range(STAGES))
        norm_stages = tuple(norm_stages)
        self.out_norms = FeatureNorms(config.dims, norm_stages) if norm_stages else None

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Return the four stage maps, `[N, dims[s], ceil(H / 2^(s + 2)), ceil(W / 2^(s + 2))]`, for dense prediction.

        The maps of `norm_stages` are normalised. Each stage computes from the map before, as it is without the norm.

        Raises:
            ValueError: images are not `[N, 3, H, W]`.
        """
        maps = self.stage_maps(images)
        return maps if self.out_norms is None else self.out_norms(maps)

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """Return the four stage maps without norms, in the shapes of `forward_features`.

        Raises:
            ValueError: images are not `[N, C, H, W]` with the channels of the stem, 3 unless it was replaced.
        """
        channels = self.patch_embed.conv.in_channels
        if images.dim() != 4 or images.shape[1] != channels:
            raise ValueError(f"images have shape {tuple(images.shape)}, TransXNet takes [N, {channels}, H, W]")
        kernels = use_triton(self.config.backend, images)
        if images.device.type == "cpu" and not kernels:
            images = images.contiguous(memory_format=torch.channels_last)
        if kernels and images.is_cuda:
            check_kernels(images.device, in_autocast_dtype(images).dtype)
        x = self.patch_embed(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def initialise(module: nn.Module) -> None:
    """Initialise as upstream: truncated normal(0, 0.02) for every kernel, zero biases, norms of weight 1."""
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, DynamicConv):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.trunc_normal_(module.bias, std=0.02)
