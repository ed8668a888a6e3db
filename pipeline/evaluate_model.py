"""Weights from wherever they are: a run, a registered model, a file; with what is known of them."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import AugmentConfig
from pipeline.model_card import (
    CARD_NAME,
    EXPORT_FOLDER,
    WEIGHTS_NAME,
    ModelCard,
    ModelCardError,
    Preprocessing,
    load_model_card,
)
from pipeline.tracking_client import (
    TrackingError,
    mask_secrets,
    mlflow_session,
    one_line,
    resolve_tracking_uri,
)
from pipeline.tracking_state import load_state, tracking_uri_of

if TYPE_CHECKING:
    import torch

PUBLISHED_CROP = {"transxnet_b": 0.95}
"""Centre crop of published weights where it is not 0.9."""


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode and where it comes from."""

    network: "torch.nn.Module"
    card: ModelCard
    tracking_uri: str
    """MLflow server of the run it came from."""


def load_model(source: str) -> LoadedModel:
    """Load weights; nothing that came with them is executed.

    Args:
        source: a run directory, a `models:/` URI, a `.safetensors` file under the published names (with or without
            `model.json` beside it), or a published `.pth` file.

    Raises:
        ModelCardError: there is no such model, or it is none of these.
        TrackingError: the registry does not answer.
    """
    if source.startswith("models:/"):
        return _from_registry(source)
    path = Path(source)
    if path.is_dir():
        card = load_model_card(path / EXPORT_FOLDER)
        state = load_state(path)
        run_id = card.mlflow_run_id or (state.run_id if state else None)
        card = dataclasses.replace(card, mlflow_run_id=run_id)
        return _build(path / EXPORT_FOLDER / WEIGHTS_NAME, card, tracking_uri_of(path))
    if path.is_file():
        card = load_model_card(path.parent) if (path.parent / CARD_NAME).is_file() else None
        return _build(path, card, resolve_tracking_uri(Path.cwd()))
    raise ModelCardError(f"{mask_secrets(source)} is no run directory, models:/ URI or file of weights")


def _from_registry(uri: str) -> LoadedModel:
    server = resolve_tracking_uri(Path.cwd())
    from mlflow.artifacts import download_artifacts

    try:
        with mlflow_session(server):
            folder = Path(download_artifacts(uri))
    except Exception as error:
        raise TrackingError(f"{uri} could not be had from {mask_secrets(server)}: {one_line(error)}") from error
    weights = next(folder.glob(f"artifacts/**/{WEIGHTS_NAME}"), None)
    if weights is None or not (weights.parent / CARD_NAME).is_file():
        raise ModelCardError(f"{uri} was not registered by pipeline.register: it has no {WEIGHTS_NAME} and {CARD_NAME}")
    return _build(weights, load_model_card(weights.parent), server)


def _build(weights: Path, card: ModelCard | None, tracking_uri: str) -> LoadedModel:
    import transxnet
    from pipeline.initialise import read_weights

    try:
        state = read_weights(weights)
    except Exception as error:
        raise ModelCardError(f"{weights} holds no weights that can be read safely: {one_line(error)}") from error
    card = card or guess_card(state, weights)
    network = transxnet.build(card.name, num_classes=card.num_classes, image_size=card.image_size, drop_path_rate=0.0)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ModelCardError(f"{weights} does not fit {card.name}: {one_line(error)}") from error
    return LoadedModel(network.eval(), card, tracking_uri)


def guess_card(state: "Mapping[str, torch.Tensor]", path: Path) -> ModelCard:
    """What the shapes of weights without a card tell: variant, classes, input size; class names stay unknown.

    Raises:
        ModelCardError: these are the weights of none of the variants.
    """
    from transxnet import VARIANTS

    width = state["patch_embed.conv.weight"].shape[0]
    num_classes = state["classifier.linear.weight"].shape[0]
    queries = state["stages.0.position_bias.table"].shape[-2]
    name = next((name for name, variant in VARIANTS.items() if variant.dims[0] == width), None)
    if name is None:
        raise ModelCardError(f"{path} holds a TransXNet whose first stage has {width} channels, which no variant has")
    settings = AugmentConfig()
    return ModelCard(
        name=name,
        num_classes=num_classes,
        image_size=4 * math.isqrt(queries),
        classes=tuple(("", "") for _ in range(num_classes)),
        preprocessing=Preprocessing(
            evaluation_crop=PUBLISHED_CROP.get(name, 0.9), mean=settings.mean, std=settings.std
        ),
        step=0,
        epoch=0.0,
    )
