"""TransXNet as a whole: stem, four stages, classifier; and the builders of its named variants."""

import logging
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.backbone import Backbone, initialise
from transxnet.block import Block
from transxnet.config import VARIANTS, Backend, TransXNetConfig, config_for
from transxnet.pretrained import WeightsSource, config_of_weights, find_weights, load_weights, open_weights

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


class TransXNet(Backbone):
    """The network of a `TransXNetConfig`, for images `[N, 3, H, W]` of any size.

    The position bias tables are made for `config.image_size`; the forward interpolates them for other sizes. It is a
    plain `nn.Module` with `nn.BatchNorm2d` norms, independent of device, optimizer and number of processes.

    With `config.out_norms`, `forward_features` normalises its maps; the logits do not depend on these norms.

    Attributes:
        config: the configuration it was built from.
    """

    def __init__(self, config: TransXNetConfig) -> None:
        super().__init__(config, norm_stages=config.norm_stages())
        self.classifier = Classifier(config.dims[-1], config.num_classes)
        self.apply(initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[N, num_classes]` of images `[N, 3, H, W]`.

        Raises:
            ValueError: images are not `[N, 3, H, W]`.
        """
        return self.classifier(self.stage_maps(images)[-1])


def leaf_modules() -> list[type[nn.Module]]:
    """Return the classes that ZeRO stage 3 must gather as a whole, for `deepspeed.utils.set_z3_leaf_modules`.

    The kernels and `ScaledResidual` use the parameters of a block's children without calling the children. One gather
    per block is also fewer messages.
    """
    return [Block]


def build(name: str, **settings: Any) -> TransXNet:
    """Build the variant `name` (`transxnet_n`, `_t`, `_s`, `_b`), with any field of `TransXNetConfig` replaced.

    Raises:
        ValueError: a name or setting does not exist, or a value does not fit.
    """
    return TransXNet(config_for(name, **settings))


logger = logging.getLogger("transxnet")


class _Default(int):
    """A default value that pretrained weights may override; a value passed by the caller is a plain `int`."""


DEFAULT_CLASSES, DEFAULT_SIZE = _Default(1000), _Default(224)


def transxnet_n(
    num_classes: int = DEFAULT_CLASSES,
    drop_path_rate: float = VARIANTS["transxnet_n"].drop_path_rate,
    image_size: int = DEFAULT_SIZE,
    backend: Backend = "auto",
    pretrained: WeightsSource | None = None,
    out_norms: bool = False,
    entry: str | None = None,
) -> TransXNet:
    """Build nano, this package's own variant: 1 M parameters, for images of 32 to 64 px, tests and the demo.

    Arguments are those of `transxnet_t`.
    """
    return _variant("transxnet_n", num_classes, drop_path_rate, image_size, backend, pretrained, out_norms, entry)


def transxnet_t(
    num_classes: int = DEFAULT_CLASSES,
    drop_path_rate: float = VARIANTS["transxnet_t"].drop_path_rate,
    image_size: int = DEFAULT_SIZE,
    backend: Backend = "auto",
    pretrained: WeightsSource | None = None,
    out_norms: bool = False,
    entry: str | None = None,
) -> TransXNet:
    """Build tiny: 12.8 M parameters, 1.8 GMAC at 224 px, 81.6 % top-1 reported on ImageNet-1K.

    Args:
        num_classes: number of classes; with pretrained weights of another number, the classifier is initialised afresh.
        drop_path_rate: stochastic depth rate of the last block.
        image_size: side in pixels that the position bias tables are made for; pretrained tables are resized to it.
        backend: `auto`, `reference` or `triton`.
        pretrained: a run directory, a `models:/` URI or a file that `open_weights` reads. Classes and image size
            default to those of the weights. The logger `transxnet` says what was taken and what was left out.
        out_norms: whether `forward_features` normalises the stage maps, as upstream's dense networks do; with the
            weights of such a network, those maps that it normalises.
        entry: the entry of the file to take, such as `state_dict`; by default averaged weights if there are some.

    Raises:
        ValueError: `pretrained` holds no weights of this variant, or a value does not fit.
        ImportError: `pretrained` is a `models:/` URI and MLflow is not installed.
    """
    return _variant("transxnet_t", num_classes, drop_path_rate, image_size, backend, pretrained, out_norms, entry)


def transxnet_s(
    num_classes: int = DEFAULT_CLASSES,
    drop_path_rate: float = VARIANTS["transxnet_s"].drop_path_rate,
    image_size: int = DEFAULT_SIZE,
    backend: Backend = "auto",
    pretrained: WeightsSource | None = None,
    out_norms: bool = False,
    entry: str | None = None,
) -> TransXNet:
    """Build small: 26.9 M parameters, 4.5 GMAC at 224 px, 83.8 % top-1 reported on ImageNet-1K.

    Arguments are those of `transxnet_t`.
    """
    return _variant("transxnet_s", num_classes, drop_path_rate, image_size, backend, pretrained, out_norms, entry)


def transxnet_b(
    num_classes: int = DEFAULT_CLASSES,
    drop_path_rate: float = VARIANTS["transxnet_b"].drop_path_rate,
    image_size: int = DEFAULT_SIZE,
    backend: Backend = "auto",
    pretrained: WeightsSource | None = None,
    out_norms: bool = False,
    entry: str | None = None,
) -> TransXNet:
    """Build base: 48.0 M parameters, 8.3 GMAC at 224 px, 84.6 % top-1 reported on ImageNet-1K.

    Arguments are those of `transxnet_t`.
    """
    return _variant("transxnet_b", num_classes, drop_path_rate, image_size, backend, pretrained, out_norms, entry)


def _variant(
    name: str,
    num_classes: int,
    drop_path_rate: float,
    image_size: int,
    backend: Backend,
    pretrained: WeightsSource | None,
    out_norms: bool,
    entry: str | None,
) -> TransXNet:
    """Build a variant, with the weights of `pretrained` if given.

    Raises:
        ValueError: `pretrained` holds no weights of this variant.
        ImportError: `pretrained` is a `models:/` URI and MLflow is not installed.
    """
    settings: dict[str, Any] = {"drop_path_rate": drop_path_rate, "backend": backend, "out_norms": out_norms}
    if pretrained is None:
        return build(name, num_classes=int(num_classes), image_size=int(image_size), **settings)
    path = find_weights(pretrained)
    weights = open_weights(path, entry)
    config = config_of_weights(weights.state)
    if config.name != name:
        raise ValueError(f"{pretrained} holds {config.name}, not {name}")
    if out_norms:
        settings["out_norms"] = config.out_norms or True
    model = build(
        name,
        num_classes=config.num_classes if isinstance(num_classes, _Default) else num_classes,
        image_size=config.image_size if isinstance(image_size, _Default) else image_size,
        **settings,
    )
    try:
        notes = load_weights(model, weights.state)
    except ValueError as error:
        raise ValueError(f"{pretrained} cannot be used: {error}") from error
    logger.info("; ".join([f"weights of {path}", *weights.describe(), *notes]))
    return model
