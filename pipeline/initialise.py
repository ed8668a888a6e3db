"""Weights for a new run to start from: another run, the registry, a safetensors file, a published checkpoint."""

import contextlib
from pathlib import Path

from torch import nn

from pipeline.config import ConfigError
from pipeline.tracking_client import TrackingError, mlflow_session, resolve_tracking_uri
from pipeline.tracking_secrets import mask_secrets


def initialise(model: nn.Module, source: str) -> str:
    """Load weights into `model`; returns a line on what was taken and what was not (`transxnet.load_weights`).

    Args:
        model: a TransXNet.
        source: as `transxnet.find_weights` takes it.

    Raises:
        ConfigError: there are no such weights, or they are of another network.
    """
    import transxnet

    uri = resolve_tracking_uri(Path.cwd())
    try:
        with mlflow_session(uri) if source.startswith("models:/") else contextlib.nullcontext():
            path = transxnet.find_weights(source)
        said = transxnet.load_weights(model, transxnet.read_weights(path))
    except (ValueError, TrackingError) as error:
        raise ConfigError(f"--train.initialise-from {mask_secrets(source)}: {mask_secrets(str(error))}") from error
    return "; ".join([f"weights from {path}", *said])
