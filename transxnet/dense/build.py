"""What the builders of all dense networks share: the backbone of a variant, and its weights."""

from collections.abc import Iterable

from transxnet.backbone import Backbone, initialise
from transxnet.config import STAGES, VARIANTS, Backend, config_for
from transxnet.pretrained import WeightsSource, find_weights, load_weights, read_weights

__all__ = ["DROP_PATH_RATES", "build_backbone"]

DROP_PATH_RATES = {"transxnet_n": 0.0, "transxnet_t": 0.1, "transxnet_s": 0.2, "transxnet_b": 0.3}
"""Rates of upstream's dense recipes; base's is lower than in classification."""


def build_backbone(
    variant: str,
    *,
    norm_stages: Iterable[int] = range(STAGES),
    drop_path_rate: float | None = None,
    image_size: int = 224,
    backend: Backend = "auto",
    pretrained: WeightsSource | None = None,
) -> Backbone:
    """Build and initialise the backbone of a dense network.

    Args:
        variant: `n`, `t`, `s` or `b`, or the full name (`transxnet_t`).
        norm_stages: stages whose maps are normalised.
        drop_path_rate: None stands for the rate of upstream's dense recipes.
        image_size: side in pixels that the position bias tables are made for. Upstream keeps the 224 of the
            classification weights; the tables are interpolated for every other size.
        backend: `auto`, `reference` or `triton`.
        pretrained: weights of a TransXNet to start from, as `transxnet.transxnet_t` takes them.

    Raises:
        ValueError: there is no such variant, a value does not fit, or `pretrained` holds no weights of this variant.
        ImportError: `pretrained` is a `models:/` URI and MLflow is not installed.
    """
    name = variant if variant in VARIANTS else f"transxnet_{variant}"
    if name not in VARIANTS:
        raise ValueError(f"there is no variant {variant!r}, choose one of n, t, s, b")
    rate = DROP_PATH_RATES[name] if drop_path_rate is None else drop_path_rate
    config = config_for(name, drop_path_rate=rate, image_size=image_size, backend=backend)
    backbone = Backbone(config, norm_stages)
    backbone.apply(initialise)
    if pretrained is not None:
        load_weights(backbone, read_weights(find_weights(pretrained)))
    return backbone
