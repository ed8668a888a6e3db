"""Trained weights from where people keep them: a registry, a run directory, a file. No pickle is ever executed."""

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
"""Where a training leaves its weights, below its run directory."""
SAFETENSORS, PICKLED = ".safetensors", (".pth", ".pt")
WRAPPERS = ("state_dict_ema", "state_dict", "model")
"""Keys under which published files keep the weights, the averaged ones first."""
HEAD = "classifier.linear."
TABLE = ".position_bias.table"


def find_weights(source: str | os.PathLike[str]) -> Path:
    """The file of weights that `source` means.

    Args:
        source: a `models:/` URI (fetched by MLflow, from the registry that `MLFLOW_TRACKING_URI` or
            `mlflow.set_tracking_uri` names), a run directory, or a `.safetensors`, `.pth` or `.pt` file.

    Raises:
        ValueError: there are no such weights.
        ImportError: a `models:/` URI without MLflow installed.
    """
    if isinstance(source, str) and source.startswith(REGISTRY):
        return _fetched(source)
    path = Path(source)
    if path.is_dir():
        path = path / EXPORTED
    if not path.is_file():
        raise ValueError(f"{source} gives no weights: {path} does not exist")
    # The authors' files are called NAME.pth.tar.
    if not {SAFETENSORS, *PICKLED} & set(path.suffixes):
        raise ValueError(f"{path} is no file of weights: {', '.join((SAFETENSORS, *PICKLED))} were expected")
    return path


def _fetched(uri: str) -> Path:
    """The weights of a registered model; only safetensors are taken from a registry."""
    try:
        # Named at run time: nothing else in this package needs MLflow.
        artifacts = import_module("mlflow.artifacts")
    except ImportError as error:
        raise ImportError(f"{uri} is fetched by MLflow, which is not installed: pip install mlflow") from error
    try:
        folder = Path(artifacts.download_artifacts(uri))
    except Exception as error:
        raise ValueError(f"{uri} could not be fetched ({error}); MLFLOW_TRACKING_URI says from where") from error
    found = sorted(folder.rglob(f"*{SAFETENSORS}"))
    if len(found) != 1:
        raise ValueError(f"{uri} holds {len(found)} {SAFETENSORS} files, one was expected")
    return found[0]


def read_weights(path: Path) -> dict[str, Tensor]:
    """State dict under this package's names, on the CPU, from a file under the published names.

    Raises:
        ValueError: the file holds something else.
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
    except Exception as error:  # a damaged file raises whatever its reader stumbles over
        reason = " ".join(str(error).split())[:300] or f"its reader ended with {type(error).__name__}"
        raise ValueError(f"{path} holds no weights that can be read safely: {reason}") from error


def config_of_weights(state: Mapping[str, Tensor]) -> TransXNetConfig:
    """Variant, number of classes and image size that a state dict under this package's names was made for.

    Raises:
        ValueError: no variant has such a first stage.
    """
    width = state["patch_embed.conv.weight"].shape[0]
    name = next((name for name, variant in VARIANTS.items() if variant.dims[0] == width), None)
    if name is None:
        raise ValueError(f"a TransXNet whose first stage has {width} channels: no variant has that")
    queries = state[f"stages.0{TABLE}"].shape[-2]
    return config_for(name, num_classes=state[f"{HEAD}weight"].shape[0], image_size=4 * math.isqrt(queries))


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Load a state dict into a model of the same variant; returns a line for each tensor that could not be taken as is.

    A classifier for another number of classes keeps its fresh weights, as timm's do. Position bias tables of another
    image size are resized bicubically, as the network itself does for another input.

    Args:
        model: a `TransXNet`.
        state: under this package's names; not changed.

    Raises:
        ValueError: the weights are of another variant.
    """
    own, taken, said = model.state_dict(), dict(state), []
    different = sorted(own.keys() ^ taken.keys())
    if different:
        raise ValueError(f"the weights are of another variant (first difference: {different[0]})")
    for name, value in state.items():
        shape = own[name].shape
        if value.shape == shape:
            continue
        if name.startswith(HEAD):
            taken[name] = own[name]
            said.append(f"{name} fresh ({value.shape[0]} classes there, {shape[0]} here)")
        elif name.endswith(TABLE) and value.shape[:-2] == shape[:-2]:
            taken[name] = F.interpolate(value.float(), size=shape[-2:], mode="bicubic", align_corners=False)
            said.append(f"{name} resized from {list(value.shape[-2:])} to {list(shape[-2:])}")
        else:
            raise ValueError(f"the weights are of another variant: {name} is {list(value.shape)}, not {list(shape)}")
    model.load_state_dict(taken)
    return said
