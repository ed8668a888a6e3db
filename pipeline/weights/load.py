"""Loads weights, with their model card, from a run, a registered model or a file."""

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from pipeline.common.errors import one_line
from pipeline.common.secrets import mask_secrets
from pipeline.config.schema import AugmentConfig, ConfigError
from pipeline.tracking.client import TrackingError, mlflow_session, resolve_tracking_uri
from pipeline.tracking.state import load_state, tracking_uri_of
from pipeline.weights.card import (
    CARD_NAME,
    EXPORT_FOLDER,
    WEIGHTS_NAME,
    ModelCard,
    ModelCardError,
    Preprocessing,
    load_model_card,
)

if TYPE_CHECKING:
    import torch

    from transxnet import TransXNetConfig


PUBLISHED_CROP = {"transxnet_b": 0.95}
"""Centre crop of the published weights of a variant, if it is not 0.9."""


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode, and where it comes from."""

    network: "torch.nn.Module"
    card: ModelCard
    tracking_uri: str
    """MLflow server of the run that it comes from."""


def load_model(source: str) -> LoadedModel:
    """Load weights into a network; no code that comes with them is executed.

    Args:
        source: a run directory, a `models:/` URI, a `.safetensors` file under the published names (with or without
            `model.json` beside it), or a published `.pth` file.

    Raises:
        ModelCardError: `source` does not exist or is none of these.
        TrackingError: the registry does not answer.
    """
    import transxnet

    server = resolve_tracking_uri(Path.cwd())
    if source.startswith("models:/"):
        try:
            with mlflow_session(server):
                weights = transxnet.find_weights(source)
        except ValueError as error:
            raise TrackingError(f"{mask_secrets(server)}: {one_line(error)}") from error
        return _build(weights, load_model_card(weights.parent), server)
    path = Path(source)
    if path.is_dir():
        card = load_model_card(path / EXPORT_FOLDER)
        state = load_state(path)
        run_id = card.mlflow_run_id or (state.run_id if state else None)
        card = dataclasses.replace(card, mlflow_run_id=run_id)
        return _build(path / EXPORT_FOLDER / WEIGHTS_NAME, card, tracking_uri_of(path) if run_id else server)
    if path.is_file():
        card = load_model_card(path.parent) if (path.parent / CARD_NAME).is_file() else None
        return _build(path, card, server)
    raise ModelCardError(f"{mask_secrets(source)} is no run directory, models:/ URI or file of weights")


def _build(weights: Path, card: ModelCard | None, tracking_uri: str) -> LoadedModel:
    """Build the network of a weights file; without a card the weights' shapes say which."""
    import transxnet

    try:
        state = transxnet.read_weights(weights)
        card = card or guess_card(transxnet.config_of_weights(state))
        network = transxnet.build(
            card.name, num_classes=card.num_classes, image_size=card.image_size, drop_path_rate=0.0
        )
        network.load_state_dict(state)
    except (ValueError, RuntimeError) as error:
        raise ModelCardError(f"{weights} cannot be used: {one_line(error)}") from error
    return LoadedModel(network.eval(), card, tracking_uri)


def guess_card(config: "TransXNetConfig") -> ModelCard:
    """Return the card that the shapes of weights without one imply; the class names stay empty."""
    settings = AugmentConfig()
    return ModelCard(
        name=config.name,
        num_classes=config.num_classes,
        image_size=config.image_size,
        classes=tuple(("", "") for _ in range(config.num_classes)),
        preprocessing=Preprocessing(
            evaluation_crop=PUBLISHED_CROP.get(config.name, 0.9), mean=settings.mean, std=settings.std
        ),
        step=0,
        epoch=0.0,
    )


def initialise(model: nn.Module, source: str) -> str:
    """Load weights into a new model; return a line on which weights were loaded and which were not.

    Args:
        model: a TransXNet.
        source: a source that `transxnet.find_weights` accepts.

    Raises:
        ConfigError: the weights do not exist, or belong to another network.
    """
    import transxnet

    uri = resolve_tracking_uri(Path.cwd())
    try:
        with mlflow_session(uri) if source.startswith("models:/") else contextlib.nullcontext():
            path = transxnet.find_weights(source)
        notes = transxnet.load_weights(model, transxnet.read_weights(path))
    except (ValueError, TrackingError) as error:
        raise ConfigError(f"--train.initialise-from {mask_secrets(source)}: {mask_secrets(str(error))}") from error
    return "; ".join([f"weights from {path}", *notes])
