"""TransXNet as a whole: stem, four stages, classifier; and the builders of its named variants."""

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
    """GroupNorm over the last map, mean over positions, and a linear layer (a 1x1 convolution in the checkpoint)."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, dim)
        self.linear = nn.Conv2d(dim, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[N, num_classes]` of a map `[N, C, H, W]`."""
        return self.linear(F.adaptive_avg_pool2d(self.norm(x), 1)).flatten(1)


class TransXNet(nn.Module):
    """The network of a `TransXNetConfig`, for images `[N, 3, H, W]` of any size.

    The position bias tables are made for `config.image_size`; the forward interpolates them for other sizes. It is a
    plain `nn.Module` with `nn.BatchNorm2d` norms, independent of device, optimizer and number of processes.

    Attributes:
        config: the configuration it was built from.
    """

    def __init__(self, config: TransXNetConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = ConvNorm(3, config.dims[0], 7, stride=4)
        self.stages = nn.ModuleList(Stage(config, stage) for stage in range(len(config.depths)))
        self.classifier = Classifier(config.dims[-1], config.num_classes)
        self.apply(_initialise)

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Return the four stage maps, `[N, dims[s], ceil(H / 2^(s + 2)), ceil(W / 2^(s + 2))]`, for dense prediction.

        Raises:
            ValueError: images are not `[N, 3, H, W]`.
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
        """Return logits `[N, num_classes]` of images `[N, 3, H, W]`.

        Raises:
            ValueError: images are not `[N, 3, H, W]`.
        """
        return self.classifier(self.forward_features(images)[-1])


def leaf_modules() -> list[type[nn.Module]]:
    """Return the classes that ZeRO stage 3 must gather as a whole, for `deepspeed.utils.set_z3_leaf_modules`.

    The kernels and `ScaledResidual` use the parameters of a block's children without calling the children. One gather
    per block is also fewer messages.
    """
    return [Block]


def _initialise(module: nn.Module) -> None:
    """Initialise as upstream: truncated normal(0, 0.02) for every kernel, zero biases, norms of weight 1."""
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, DynamicConv):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.trunc_normal_(module.bias, std=0.02)


def build(name: str, **settings: Any) -> TransXNet:
    """Build the variant `name` (`transxnet_n`, `_t`, `_s`, `_b`), with any field of `TransXNetConfig` replaced.

    Raises:
        ValueError: a name or setting does not exist, or a value does not fit.
    """
    return TransXNet(config_for(name, **settings))


WeightsSource = str | os.PathLike[str]


class _Default(int):
    """A default value that pretrained weights may override; a value passed by the caller is a plain `int`."""


DEFAULT_CLASSES, DEFAULT_SIZE = _Default(1000), _Default(224)


def transxnet_n(
    num_classes: int = DEFAULT_CLASSES,
    drop_path_rate: float = VARIANTS["transxnet_n"].drop_path_rate,
    image_size: int = DEFAULT_SIZE,
    backend: Backend = "auto",
    pretrained: WeightsSource | None = None,
) -> TransXNet:
    """Build nano, this package's own variant: 1 M parameters, for images of 32 to 64 px, tests and the demo.

    Arguments are those of `transxnet_t`.
    """
    return _variant("transxnet_n", num_classes, drop_path_rate, image_size, backend, pretrained)


def transxnet_t(
    num_classes: int = DEFAULT_CLASSES,
    drop_path_rate: float = VARIANTS["transxnet_t"].drop_path_rate,
    image_size: int = DEFAULT_SIZE,
    backend: Backend = "auto",
    pretrained: WeightsSource | None = None,
) -> TransXNet:
    """Build tiny: 12.8 M parameters, 1.8 GMAC at 224 px, 81.6 % top-1 reported on ImageNet-1K.

    Args:
        num_classes: number of classes; with pretrained weights of another number, the classifier is initialised afresh.
        drop_path_rate: stochastic depth rate of the last block.
        image_size: side in pixels that the position bias tables are made for; pretrained tables are resized to it.
        backend: `auto`, `reference` or `triton`.
        pretrained: a run directory, a `models:/` URI or a file of weights. Classes and image size default to those of
            the weights.

    Raises:
        ValueError: `pretrained` holds no weights of this variant, or a value does not fit.
        ImportError: `pretrained` is a `models:/` URI and MLflow is not installed.
    """
    return _variant("transxnet_t", num_classes, drop_path_rate, image_size, backend, pretrained)


def transxnet_s(
    num_classes: int = DEFAULT_CLASSES,
    drop_path_rate: float = VARIANTS["transxnet_s"].drop_path_rate,
    image_size: int = DEFAULT_SIZE,
    backend: Backend = "auto",
    pretrained: WeightsSource | None = None,
) -> TransXNet:
    """Build small: 26.9 M parameters, 4.5 GMAC at 224 px, 83.8 % top-1 reported on ImageNet-1K.

    Arguments are those of `transxnet_t`.
    """
    return _variant("transxnet_s", num_classes, drop_path_rate, image_size, backend, pretrained)


def transxnet_b(
    num_classes: int = DEFAULT_CLASSES,
    drop_path_rate: float = VARIANTS["transxnet_b"].drop_path_rate,
    image_size: int = DEFAULT_SIZE,
    backend: Backend = "auto",
    pretrained: WeightsSource | None = None,
) -> TransXNet:
    """Build base: 48.0 M parameters, 8.3 GMAC at 224 px, 84.6 % top-1 reported on ImageNet-1K.

    Arguments are those of `transxnet_t`.
    """
    return _variant("transxnet_b", num_classes, drop_path_rate, image_size, backend, pretrained)


def _variant(
    name: str,
    num_classes: int,
    drop_path_rate: float,
    image_size: int,
    backend: Backend,
    pretrained: WeightsSource | None,
) -> TransXNet:
    """Build a variant, with the weights of `pretrained` if given.

    Raises:
        ValueError: `pretrained` holds no weights of this variant.
        ImportError: `pretrained` is a `models:/` URI and MLflow is not installed.
    """
    settings: dict[str, Any] = {"drop_path_rate": drop_path_rate, "backend": backend}
    if pretrained is None:
        return build(name, num_classes=int(num_classes), image_size=int(image_size), **settings)
    state = read_weights(find_weights(pretrained))
    config = config_of_weights(state)
    if config.name != name:
        raise ValueError(f"{pretrained} holds {config.name}, not {name}")
    model = build(
        name,
        num_classes=config.num_classes if isinstance(num_classes, _Default) else num_classes,
        image_size=config.image_size if isinstance(image_size, _Default) else image_size,
        **settings,
    )
    load_weights(model, state)
    return model
