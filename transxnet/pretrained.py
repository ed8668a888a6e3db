"""Load trained weights from the MLflow registry, a run directory or a file, without executing pickles."""

import math
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.config import VARIANTS, TransXNetConfig, config_for
from transxnet.upstream import from_upstream

__all__ = ["config_of_weights", "find_weights", "load_weights", "read_weights"]

REGISTRY = "models:/"
EXPORTED = Path("export") / "model.safetensors"
"""Path of a training's final weights below its run directory."""
SAFETENSORS, PICKLED = ".safetensors", (".pth", ".pt")
WRAPPERS = ("state_dict_ema", "state_dict", "model")
"""Keys under which published files store the weights; averaged weights take precedence."""
HEAD = "classifier.linear."
TABLE = ".position_bias.table"


def find_weights(source: str | os.PathLike[str]) -> Path:
    """Return the file of weights that `source` refers to.

    Args:
        source: a `models:/` URI (fetched by MLflow from the registry set by `MLFLOW_TRACKING_URI` or
            `mlflow.set_tracking_uri`), a run directory, or a `.safetensors`, `.pth` or `.pt` file.

    Raises:
        ValueError: there are no such weights.
        ImportError: a `models:/` URI is given and MLflow is not installed.
    """
    if isinstance(source, str) and source.startswith(REGISTRY):
        return _fetch(source)
    path = Path(source)
    if path.is_dir():
        path = path / EXPORTED
    if not path.is_file():
        raise ValueError(f"{source} holds no weights: {path} does not exist")
    # The names of the authors' files end in .pth.tar.
    if not {SAFETENSORS, *PICKLED} & set(path.suffixes):
        raise ValueError(f"{path} is not a file of weights: expected one of {', '.join((SAFETENSORS, *PICKLED))}")
    return path


def _fetch(uri: str) -> Path:
    """Download the weights of a registered model; only safetensors are accepted from a registry."""
    try:
        # Imported by name, because nothing else in this package needs MLflow.
        artifacts = import_module("mlflow.artifacts")
    except ImportError as error:
        raise ImportError(f"{uri} is fetched by MLflow, which is not installed: pip install mlflow") from error
    try:
        folder = Path(artifacts.download_artifacts(uri))
    except Exception as error:
        raise ValueError(
            f"{uri} could not be fetched ({error}); check that MLFLOW_TRACKING_URI names the registry's server"
        ) from error
    found = sorted(folder.rglob(f"*{SAFETENSORS}"))
    if len(found) != 1:
        raise ValueError(f"{uri} holds {len(found)} {SAFETENSORS} files, expected exactly one")
    return found[0]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file with the published names, and return a CPU state dict with this package's names.

    Raises:
        ValueError: the file holds anything else.
    """
    try:
        if path.suffix == SAFETENSORS:
            from safetensors.torch import load_file

            return from_upstream(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in WRAPPERS:
            if isinstance(content.get(wrapper), dict):
                content = content[wrapper]
        return from_upstream({k.removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)})
    except Exception as error:  # a damaged file may raise any exception in its reader
        reason = " ".join(str(error).split())[:300] or f"its reader ended with {type(error).__name__}"
        raise ValueError(f"{path} holds no weights that can be read safely: {reason}") from error


def config_of_weights(state: Mapping[str, Tensor]) -> TransXNetConfig:
    """Return the configuration (variant, classes, image size) of a state dict with this package's names.

    Raises:
        ValueError: no variant has such a first stage.
    """
    width = state["patch_embed.conv.weight"].shape[0]
    name = next((name for name, variant in VARIANTS.items() if variant.dims[0] == width), None)
    if name is None:
        raise ValueError(f"the weights have {width} channels in the first stage, which no variant has")
    queries = state[f"stages.0{TABLE}"].shape[-2]
    head = state.get(f"{HEAD}weight")
    classes = {} if head is None else {"num_classes": head.shape[0]}
    return config_for(name, image_size=4 * math.isqrt(queries), **classes)


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Load a state dict into a model of the same variant, and return a line for each tensor not loaded as is.

    A classifier for another number of classes keeps its initial weights, as in timm. Position bias tables of another
    image size are resized bicubically, as the network does for other inputs.

    Args:
        model: a `TransXNet`.
        state: the state dict under this package's names; it is not changed.

    Raises:
        ValueError: the weights are of another variant.
    """
    own, loaded, notes = model.state_dict(), dict(state), []
    different = sorted(own.keys() ^ loaded.keys())
    if different:
        raise ValueError(f"the weights are of another variant (first difference: {different[0]})")
    for name, value in state.items():
        shape = own[name].shape
        if value.shape == shape:
            continue
        if name.startswith(HEAD):
            loaded[name] = own[name]
            notes.append(
                f"{name} initialised afresh ({value.shape[0]} classes in the weights, {shape[0]} in the model)"
            )
        elif name.endswith(TABLE) and value.shape[:-2] == shape[:-2]:
            loaded[name] = F.interpolate(value.float(), size=shape[-2:], mode="bicubic", align_corners=False)
            notes.append(f"{name} resized from {list(value.shape[-2:])} to {list(shape[-2:])}")
        else:
            raise ValueError(f"the weights are of another variant: {name} is {list(value.shape)}, not {list(shape)}")
    model.load_state_dict(loaded)
    return notes
