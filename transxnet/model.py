"""TransXNet as a whole: stem, four stages, classifier; and its named builders."""

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.backend import use_triton
from transxnet.block import Block, Stage
from transxnet.config import VARIANTS, Backend, TransXNetConfig, config_for
from transxnet.layers import ConvNorm
from transxnet.mixer import DynamicConv
from transxnet.pretrained import config_of_weights, find_weights, load_weights, read_weights

__all__ = [
    "Classifier",
    "TransXNet",
    "build",
    "leaf_modules",
    "transxnet_b",
    "transxnet_n",
    "transxnet_s",
    "transxnet_t",
]


class Classifier(nn.Module):
    """GroupNorm over the last map, mean over positions, one linear layer (a 1x1 convolution in the checkpoint)."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, dim)
        self.linear = nn.Conv2d(dim, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[N, C, H, W]` to logits `[N, num_classes]`."""
        return self.linear(F.adaptive_avg_pool2d(self.norm(x), 1)).flatten(1)


class TransXNet(nn.Module):
    """The network of a `TransXNetConfig`, for images `[N, 3, H, W]` of any size.

    The position bias tables are made for `config.image_size`; for other sizes they are interpolated in the forward.
    A plain `nn.Module`: its norms are `nn.BatchNorm2d`, it knows no device, no optimizer and no other process.

    Attributes:
        config: what it was built from.
    """

    def __init__(self, config: TransXNetConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = ConvNorm(3, config.dims[0], 7, stride=4)
        self.stages = nn.ModuleList(Stage(config, stage) for stage in range(len(config.depths)))
        self.classifier = Classifier(config.dims[-1], config.num_classes)
        self.apply(_initialise)

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """The maps of the four stages, `[N, dims[s], ceil(H / 2^(s + 2)), ceil(W / 2^(s + 2))]`, for dense prediction.

        Raises:
            ValueError: images of another layout than `[N, 3, H, W]`.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images have shape {tuple(images.shape)}, TransXNet takes [N, 3, H, W]")
        if images.device.type == "cpu" and not use_triton(self.config.backend, images):
            images = images.contiguous(memory_format=torch.channels_last)
        x = self.patch_embed(images)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, num_classes]` of images `[N, 3, H, W]`.

        Raises:
            ValueError: images of another layout than `[N, 3, H, W]`.
        """
        return self.classifier(self.forward_features(images)[-1])


def leaf_modules() -> list[type[nn.Module]]:
    """Classes that ZeRO stage 3 must gather as a whole, for `deepspeed.utils.set_z3_leaf_modules`.

    The kernels take the parameters of a block's children without calling the children, and so does `ScaledResidual`.
    One gather a block is also fewer messages.
    """
    return [Block]


def _initialise(module: nn.Module) -> None:
    """Upstream's initialisation: normal(0, 0.02) cut at 2 for every kernel, zero biases, unit norms."""
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, DynamicConv):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.trunc_normal_(module.bias, std=0.02)


def build(name: str, **settings: Any) -> TransXNet:
    """The variant `name` (`transxnet_n`, `_t`, `_s`, `_b`) with any field of `TransXNetConfig` replaced.

    Raises:
        ValueError: an unknown name or setting, or a value that does not fit.
    """
    return TransXNet(config_for(name, **settings))


Source = str | os.PathLike[str]


class _Unless(int):
    """A default that holds unless pretrained weights say otherwise; a value that was given is a plain `int`."""


CLASSES, SIZE = _Unless(1000), _Unless(224)


def transxnet_n(
    num_classes: int = CLASSES,
    drop_path_rate: float = VARIANTS["transxnet_n"].drop_path_rate,
    image_size: int = SIZE,
    backend: Backend = "auto",
    pretrained: Source | None = None,
) -> TransXNet:
    """Nano, ours: about 1 M parameters, for images of 32 to 64 px, tests and the demo.

    `pretrained`: a run directory, a `models:/` URI or a file of weights; classes and image size are then theirs unless
    given. Other classes get a fresh classifier, another image size resized position tables.
    """
    return _variant("transxnet_n", num_classes, drop_path_rate, image_size, backend, pretrained)


def transxnet_t(
    num_classes: int = CLASSES,
    drop_path_rate: float = VARIANTS["transxnet_t"].drop_path_rate,
    image_size: int = SIZE,
    backend: Backend = "auto",
    pretrained: Source | None = None,
) -> TransXNet:
    """Tiny: 12.8 M parameters, 1.8 GMAC at 224 px, 81.6 % top-1 reported on ImageNet-1K.

    `pretrained`: a run directory, a `models:/` URI or a file of weights; classes and image size are then theirs unless
    given. Other classes get a fresh classifier, another image size resized position tables.
    """
    return _variant("transxnet_t", num_classes, drop_path_rate, image_size, backend, pretrained)


def transxnet_s(
    num_classes: int = CLASSES,
    drop_path_rate: float = VARIANTS["transxnet_s"].drop_path_rate,
    image_size: int = SIZE,
    backend: Backend = "auto",
    pretrained: Source | None = None,
) -> TransXNet:
    """Small: 26.9 M parameters, 4.5 GMAC at 224 px, 83.8 % top-1 reported on ImageNet-1K.

    `pretrained`: a run directory, a `models:/` URI or a file of weights; classes and image size are then theirs unless
    given. Other classes get a fresh classifier, another image size resized position tables.
    """
    return _variant("transxnet_s", num_classes, drop_path_rate, image_size, backend, pretrained)


def transxnet_b(
    num_classes: int = CLASSES,
    drop_path_rate: float = VARIANTS["transxnet_b"].drop_path_rate,
    image_size: int = SIZE,
    backend: Backend = "auto",
    pretrained: Source | None = None,
) -> TransXNet:
    """Base: 48.0 M parameters, 8.3 GMAC at 224 px, 84.6 % top-1 reported on ImageNet-1K.

    `pretrained`: a run directory, a `models:/` URI or a file of weights; classes and image size are then theirs unless
    given. Other classes get a fresh classifier, another image size resized position tables.
    """
    return _variant("transxnet_b", num_classes, drop_path_rate, image_size, backend, pretrained)


def _variant(
    name: str, num_classes: int, drop_path_rate: float, image_size: int, backend: Backend, pretrained: Source | None
) -> TransXNet:
    """Build a variant, with trained weights where `pretrained` says so.

    Raises:
        ValueError: `pretrained` gives no weights of this variant.
        ImportError: a `models:/` URI without MLflow installed.
    """
    settings: dict[str, Any] = {"drop_path_rate": drop_path_rate, "backend": backend}
    if pretrained is None:
        return build(name, num_classes=int(num_classes), image_size=int(image_size), **settings)
    state = read_weights(find_weights(pretrained))
    theirs = config_of_weights(state)
    if theirs.name != name:
        raise ValueError(f"{pretrained} holds {theirs.name}, not {name}")
    model = build(
        name,
        num_classes=theirs.num_classes if isinstance(num_classes, _Unless) else num_classes,
        image_size=theirs.image_size if isinstance(image_size, _Unless) else image_size,
        **settings,
    )
    load_weights(model, state)
    return model
