"""TransXNet in timm: after `import transxnet.timm`, `timm.create_model("transxnet_t")` and whatever builds on it.

It follows the interface that timm documents for its own models: `forward_features`, `forward_head`,
`forward_intermediates`, `get_classifier`, `reset_classifier`, `group_matcher`, `set_grad_checkpointing`,
`no_weight_decay`, `feature_info` and default configurations with the authors' published weights. The network, its
parameters' names and its logits are those of this package.

This module alone imports timm; nothing else of the package needs it.
"""

from collections.abc import Mapping
from typing import Any

from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.adaptive_avgmax_pool import SelectAdaptivePool2d
from timm.models._builder import build_model_with_cfg
from timm.models._features import feature_take_indices
from timm.models._registry import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet import model as _model
from transxnet.backbone import initialise
from transxnet.config import STAGES, config_for
from transxnet.layers import ConvNorm
from transxnet.pretrained import fit_weights
from transxnet.recompute import keep_for_backward, recompute_in_backward
from transxnet.weights_entries import choose_weights

__all__ = ["TransXNet", "transxnet_b", "transxnet_n", "transxnet_s", "transxnet_t"]

STEM, CLASSIFIER = "patch_embed.conv", "classifier.linear"


class Head(_model.Classifier):
    """GroupNorm over the last map, timm's pooling, dropout and the linear layer, which may be missing."""

    def __init__(self, dim: int, num_classes: int, global_pool: str, drop_rate: float) -> None:
        super().__init__(dim, max(num_classes, 1))
        self.dim, self.drop_rate = dim, drop_rate
        self.linear: nn.Module
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the linear layer by a new one, or by none for 0 classes, and the pooling if one is given."""
        if global_pool is not None:
            self.pool = SelectAdaptivePool2d(pool_type=global_pool)
        # As the weights come from it: its device and precision.
        like = {"device": self.norm.weight.device, "dtype": self.norm.weight.dtype}
        self.linear = nn.Conv2d(self.dim, num_classes, 1, **like) if num_classes else nn.Identity()
        self.linear.apply(initialise)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits `[N, num_classes]`, or features `[N, C]`, of a map `[N, C, H, W]`; unpooled they stay maps."""
        x = F.dropout(self.pool(self.norm(x)), self.drop_rate, self.training)
        x = x if pre_logits else self.linear(x)
        return x if self.pool.is_identity() else x.flatten(1)


class TransXNet(_model.TransXNet):
    """A TransXNet with timm's interface, for images `[N, in_chans, H, W]` of any size.

    Args:
        name: the variant, such as `transxnet_t`.
        num_classes: number of classes; 0 for a network that returns its features.
        in_chans: channels of the images.
        global_pool: timm's pooling before the classifier: `avg`, `max`, `avgmax`, `fast`, or an empty string for none.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth rate of the last block; by default 0, as in timm.
        img_size: side in pixels, or height and width, that the position bias tables are made for; other sizes
            interpolate them.
        backend: `auto`, `reference` or `triton`.

    Raises:
        ValueError: a value does not fit.
    """

    def __init__(
        self,
        name: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        img_size: int | tuple[int, int] = 224,
        backend: str = "auto",
    ) -> None:
        sides = {img_size} if isinstance(img_size, int) else set(img_size)
        if len(sides) != 1:
            raise ValueError(f"img_size is {img_size}, the position bias tables are made for squares: give one side")
        _check_pool(global_pool)
        config = config_for(
            name,
            num_classes=max(num_classes, 1),
            image_size=sides.pop(),
            drop_path_rate=drop_path_rate,
            backend=backend,
        )
        super().__init__(config)
        self.num_classes, self.in_chans = num_classes, in_chans
        self.num_features = self.head_hidden_size = config.dims[-1]
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": dim, "reduction": 2 ** (stage + 2), "module": f"stages.{stage}"}
            for stage, dim in enumerate(config.dims)
        ]
        if in_chans != 3:
            self.patch_embed = ConvNorm(in_chans, config.dims[0], 7, stride=4)
            self.patch_embed.apply(initialise)
        self.classifier = Head(config.dims[-1], num_classes, global_pool, drop_rate)

    def forward_features(self, images: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the last stage's map `[N, C, ceil(H / 32), ceil(W / 32)]` of images `[N, in_chans, H, W]`."""
        return self.stage_maps(images)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits of the last map, or with `pre_logits` what the linear layer would see."""
        return self.classifier(x, pre_logits=pre_logits)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[N, num_classes]`; without classes features `[N, C]`; without pooling maps."""
        return self.forward_head(self.forward_features(images))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return stage maps, by timm's interface of that name.

        Args:
            x: images `[N, in_chans, H, W]`.
            indices: the stages; a number for so many of the last; None for all.
            norm: normalise the last map as the classifier does.
            stop_early: has no effect: the last stage is a small part of the work.
            output_fmt: `NCHW`.
            intermediates_only: return the maps alone, without the last one beside them.

        Raises:
            ValueError: another format is asked for.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt is {output_fmt!r}, TransXNet's maps are NCHW")
        taken, _ = feature_take_indices(len(self.stages), indices)
        maps = self.stage_maps(x)
        last = maps[-1]
        if norm:
            maps[-1] = self.classifier.norm(last)
        chosen = [maps[index] for index in taken]
        return chosen if intermediates_only else (last, chosen)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages after the last of `indices`, and the classifier; returns the stages' numbers."""
        taken, last = feature_take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_head:
            self.reset_classifier(0, "")
        if prune_norm:
            self.classifier.norm = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
        return taken

    def get_classifier(self) -> nn.Module:
        """Return the linear layer, a 1x1 convolution as in the published weights."""
        return self.classifier.linear

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Begin a new linear layer of `num_classes` outputs (0: none), and change the pooling if one is given."""
        if global_pool is not None:
            _check_pool(global_pool)
        self.num_classes = num_classes
        self.classifier.reset(num_classes, global_pool)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the layers for layer-wise rates: the stem, each block (coarse: each stage), the classifier."""
        blocks = [(r"^stages\.(\d+)\.(?:downsample|position_bias)", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^patch_embed", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Have every block compute its maps again in the backward instead of keeping them."""
        kinds = tuple(_model.leaf_modules())
        self.grad_checkpointing = enable
        if enable:
            recompute_in_backward(self, kinds)
        else:
            keep_for_backward(self, kinds)

    def no_weight_decay(self) -> set[str]:
        """Return no names: 1-D parameters and biases, which timm leaves out by itself, are all that do not decay."""
        return set()


def _check_pool(global_pool: str) -> None:
    pools = ("avg", "avgmax", "fast", "max", "")
    if global_pool not in pools:
        raise ValueError(f"global_pool is {global_pool!r}, choose one of {', '.join(map(repr, pools))}")


def _fit(state: Mapping[str, Any], model: TransXNet) -> dict[str, Tensor]:
    """Return the weights of a file under this package's names, with tables of the model's size.

    timm then fits the stem to `in_chans` and leaves out a classifier of other classes.
    """
    weights = dict(choose_weights(state).state)
    given = {name: weights.pop(name) for name in (f"{STEM}.weight", *_linear_names(weights))}
    own = model.state_dict()
    fitted, _ = fit_weights(model, weights | {name: own.get(name, given[name]) for name in given})
    return {name: value for name, value in fitted.items() if name not in given} | given


def _linear_names(state: Mapping[str, Any]) -> list[str]:
    return [name for name in (f"{CLASSIFIER}.weight", f"{CLASSIFIER}.bias") if name in state]


def _defaults(size: str, crop: float) -> dict[str, Any]:
    """Timm's default configuration of the authors' weights of a variant: where they are, and how to evaluate them."""
    return {
        "url": f"https://github.com/LMMMEng/TransXNet/releases/download/v1.0/transx-{size}.pth.tar",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": crop,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": STEM,
        "classifier": CLASSIFIER,
        "origin_url": "https://github.com/LMMMEng/TransXNet",
        "paper_ids": "arXiv:2310.19380",
    }


default_cfgs = generate_default_cfgs(
    {
        "transxnet_n.untrained": _defaults("n", 0.9) | {"url": ""},
        "transxnet_t.in1k": _defaults("t", 0.9),
        "transxnet_s.in1k": _defaults("s", 0.9),
        "transxnet_b.in1k": _defaults("b", 0.95),
    }
)


def _create(name: str, pretrained: bool, settings: dict[str, Any]) -> nn.Module:
    return build_model_with_cfg(
        TransXNet,
        name,
        pretrained,
        pretrained_filter_fn=_fit,
        feature_cfg={"out_indices": tuple(range(STAGES)), "feature_cls": "getter"},
        name=name,
        **settings,
    )


@register_model
def transxnet_n(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Nano, this package's own variant: 1 M parameters; there are no published weights of it."""
    return _create("transxnet_n", pretrained, kwargs)


@register_model
def transxnet_t(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Tiny: 12.8 M parameters, 1.8 GMAC, 81.6 % top-1 on ImageNet-1K (arXiv 2310.19380)."""
    return _create("transxnet_t", pretrained, kwargs)


@register_model
def transxnet_s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Small: 26.9 M parameters, 4.5 GMAC, 83.8 % top-1 on ImageNet-1K (arXiv 2310.19380)."""
    return _create("transxnet_s", pretrained, kwargs)


@register_model
def transxnet_b(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Base: 48.0 M parameters, 8.3 GMAC, 84.6 % top-1 on ImageNet-1K (arXiv 2310.19380)."""
    return _create("transxnet_b", pretrained, kwargs)
