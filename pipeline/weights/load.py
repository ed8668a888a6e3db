"""Loads weights, with their model card, from a run, a registered model or a file."""

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from pipeline.common.errors import one_line
from pipeline.common.secrets import mask_secrets
from pipeline.config.schema import AugmentConfig, ConfigError, ModelConfig
from pipeline.tasks import DEFAULT, Task, find_task
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
    from transxnet.weights_entries import Weights


PUBLISHED_CROP = {"transxnet_b": 0.95}
"""Centre crop of the published weights of a variant, if it is not 0.9."""


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode, and where it comes from."""

    network: "torch.nn.Module"
    card: ModelCard
    tracking_uri: str
    """MLflow server of the run that it comes from."""
    origin: str = ""
    """Which entry of the file was taken, and what was left out, in words; empty if the file holds nothing else."""


def load_model(source: str, entry: str | None = None) -> LoadedModel:
    """Load weights into a network; no code that comes with them is executed.

    Args:
        source: a run directory, a `models:/` URI, or a file that `transxnet.open_weights` reads, with or without
            `model.json` beside it.
        entry: the entry of the file to take; by default averaged weights if there are some.

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
        return _build(weights, load_model_card(weights.parent), server, entry)
    path = Path(source)
    if path.is_dir():
        card = load_model_card(path / EXPORT_FOLDER)
        state = load_state(path)
        run_id = card.mlflow_run_id or (state.run_id if state else None)
        card = dataclasses.replace(card, mlflow_run_id=run_id)
        return _build(path / EXPORT_FOLDER / WEIGHTS_NAME, card, tracking_uri_of(path) if run_id else server, entry)
    if path.is_file():
        card = load_model_card(path.parent) if (path.parent / CARD_NAME).is_file() else None
        return _build(path, card, server, entry)
    raise ModelCardError(f"{mask_secrets(source)} is no run directory, models:/ URI or file of weights")


def _build(path: Path, card: ModelCard | None, tracking_uri: str, entry: str | None) -> LoadedModel:
    """Build the network of a weights file; without a card the weights' shapes say which."""
    import transxnet

    if card is not None and card.task != DEFAULT:
        return _build_other(path, card, tracking_uri)
    try:
        weights = transxnet.open_weights(path, entry)
        config = transxnet.config_of_weights(weights.state)
        if "classifier.linear.weight" not in weights.state:
            raise ValueError(
                f"{path} cannot be used: it holds {config.name} without a classifier, which gives no logits"
            )
        if card is not None and (card.name, card.num_classes) != (config.name, config.num_classes):
            raise ValueError(
                f"{path} cannot be used: it holds {config.name} of {config.num_classes} classes, and {CARD_NAME} "
                f"beside it describes {card.name} of {card.num_classes}"
            )
        card = card or guess_card(config)
        network = transxnet.build(
            card.name, num_classes=card.num_classes, image_size=card.image_size, drop_path_rate=0.0
        )
        notes = transxnet.load_weights(network, weights.state)
    except ValueError as error:
        where = "" if str(path) in str(error) else f"{path} cannot be used: "
        raise ModelCardError(f"{where}{mask_secrets(str(error))}") from error
    return LoadedModel(network.eval(), card, tracking_uri, "; ".join([*weights.describe(), *notes]))


def _build_other(path: Path, card: ModelCard, tracking_uri: str) -> LoadedModel:
    """Build the network of another task than classification, which its card describes.

    Raises:
        ModelCardError: the file holds other weights.
    """
    from safetensors.torch import load_file

    network = card.of_task.build(card.name, num_classes=card.num_classes, image_size=card.image_size)
    try:
        network.load_state_dict(card.of_task.from_published(load_file(path)))
    except Exception as error:  # a damaged file may raise any exception in its reader
        raise ModelCardError(f"{path} cannot be used: {one_line(error)}") from error
    return LoadedModel(network.eval(), card, tracking_uri, "")


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


def initialise(model: nn.Module, source: str, entry: str | None = None, *, task: Task | None = None) -> str:
    """Load weights into a new model; return a line on which weights were loaded and which were not.

    Args:
        model: a network of the task.
        source: a source that `transxnet.find_weights` accepts.
        entry: the entry of the file to take; by default averaged weights if there are some.
        task: what the network learns; None: classification.

    Raises:
        ConfigError: the weights do not exist, or belong to another network.
    """
    path, weights = _open(source, entry)
    task = task or find_task(DEFAULT)
    _refuse_other_heads(source, task, weights)
    try:
        notes = task.initialise(model, weights.state)
    except ValueError as error:
        raise _refusal(source, f"{path} cannot be used: {error}") from error
    return "; ".join([f"weights of {path}", *weights.describe(), *notes])


def check_initial(config: ModelConfig, task: Task, source: str, entry: str | None = None) -> str:
    """Check at the launch that a new run can start from weights; return the line that `initialise` will log.

    Args:
        config: the network that is trained.
        task: what it learns.
        source: a run directory or a file.
        entry: the entry of the file to take; by default averaged weights if there are some.

    Raises:
        ConfigError: the weights do not exist, cannot be read, or belong to another network.
    """
    import torch

    import transxnet

    path, weights = _open(source, entry)
    _refuse_other_heads(source, task, weights)
    try:
        found = transxnet.config_of_weights(weights.state)
        backbone = task.backbone(config.name)
        if found.name != backbone:
            raise _refusal(source, f"weights of {found.name}, and this run trains {config.name}")
        with torch.device("meta"):
            network = transxnet.build(backbone, num_classes=found.num_classes, image_size=config.image_size)
        _, notes = transxnet.fit_weights(network, weights.state)
    except ConfigError:
        raise
    except ValueError as error:
        raise _refusal(source, f"{path} cannot be used: {error}") from error
    return "; ".join([f"weights of {path}", *weights.describe(), *notes])


def _open(source: str, entry: str | None) -> "tuple[Path, Weights]":
    """Return the file that `--train.initialise-from` names, and its weights.

    Raises:
        ConfigError: they do not exist or cannot be read.
    """
    import transxnet

    uri = resolve_tracking_uri(Path.cwd())
    try:
        with mlflow_session(uri) if source.startswith("models:/") else contextlib.nullcontext():
            path = transxnet.find_weights(source)
        return path, transxnet.open_weights(path, entry)
    except (ValueError, TrackingError) as error:
        raise _refusal(source, str(error)) from error


def _refuse_other_heads(source: str, task: Task, weights: "Weights") -> None:
    """Refuse a published file of another dense network than the task's.

    Raises:
        ConfigError: the message names its head, and what the task starts from.
    """
    heads = [part for part in weights.outside if part in task.other_heads]
    if heads:
        raise _refusal(
            source,
            f"it holds a network of another task, with {' and '.join(heads)}: a {task.name} starts from the weights of "
            "a classifier, or from those of its own network",
        )


def _refusal(source: str, reason: str) -> ConfigError:
    return ConfigError(f"--train.initialise-from {mask_secrets(source)}: {mask_secrets(reason)}")
