"""Load trained weights from the MLflow registry, a run directory or a file, without executing pickles."""

import math
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from transxnet.config import STAGES, VARIANTS, TransXNetConfig, config_for
from transxnet.weights_entries import Weights, choose_weights
from transxnet.weights_file import WeightsError, check_suffix, read_content

__all__ = [
    "WeightsSource",
    "config_of_weights",
    "find_weights",
    "fit_weights",
    "load_weights",
    "open_weights",
    "read_weights",
]

WeightsSource = str | os.PathLike[str]
"""A `models:/` URI, a run directory or a file."""
REGISTRY = "models:/"
EXPORTED = Path("export") / "model.safetensors"
"""Path of a training's final weights below its run directory."""
CLASSIFIER, HEAD, NORMS = "classifier.", "classifier.linear.", "out_norms."
TABLE = ".position_bias.table"


def find_weights(source: WeightsSource) -> Path:
    """Return the file of weights that `source` refers to.

    Args:
        source: a `models:/` URI (fetched by MLflow from the registry set by `MLFLOW_TRACKING_URI` or
            `mlflow.set_tracking_uri`), a run directory, or a file that `open_weights` reads.

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
            raise ValueError(f"{source} holds no weights: {path} does not exist; a training writes it when it ends")
    if not path.is_file():
        raise ValueError(f"{source} holds no weights: {path} does not exist")
    check_suffix(path)
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
    found = sorted(folder.rglob("*.safetensors"))
    if len(found) != 1:
        raise ValueError(f"{uri} holds {len(found)} .safetensors files, expected exactly one")
    return found[0]


def open_weights(path: Path, entry: str | None = None) -> Weights:
    """Read the weights of a network from a file: their state dict, the entry it was, and what was left out.

    It reads safetensors and torch files (`.pth`, `.pth.tar`, `.pt`, `.bin`, `.ckpt`), under upstream's names or this
    package's, below any prefix, with or without a classifier, and the backbone of upstream's dense networks. Nothing in
    the file is executed.

    Args:
        path: the file.
        entry: the entry to take of a file with several, such as `state_dict` or `state_dict_ema`; by default averaged
            weights if there are some.

    Raises:
        WeightsError: the file is not whole, holds anything else, or would have to be executed; the message is one line.
    """
    content = read_content(path)
    try:
        return choose_weights(content, entry)
    except ValueError as error:
        raise WeightsError(f"{path} cannot be used: {error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict of `open_weights`, under this package's names, on the CPU."""
    return open_weights(path).state


def config_of_weights(state: Mapping[str, Tensor]) -> TransXNetConfig:
    """Return the configuration (variant, classes, image size, norms) of a state dict with this package's names.

    Without a classifier the number of classes is the default one.

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
    norms = tuple(stage for stage in range(STAGES) if f"{NORMS}{stage}.weight" in state)
    return config_for(name, image_size=4 * math.isqrt(queries), out_norms=norms, **classes)


def fit_weights(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return a state dict with the model's keys and shapes, and a line for each tensor that is not as in `state`.

    A classifier that the weights do not have, or have for another number of classes, keeps its initial weights, as in
    timm; so do norms of the stage maps that they do not have. Norms that the model does not have are left out. Position
    bias tables of another image size are resized bicubically, as the network does for other inputs.

    Args:
        model: a `TransXNet`, or the backbone of a dense network, from which a classifier is left out; it may be on the
            meta device, and is not changed.
        state: a state dict under this package's names; it is not changed.

    Raises:
        ValueError: the weights are of another variant.
    """
    own, loaded, notes = model.state_dict(), dict(state), []
    wanted = getattr(model, "config", None)
    if isinstance(wanted, TransXNetConfig) and wanted.name in VARIANTS:
        found = config_of_weights(state).name
        if found != wanted.name:
            raise ValueError(f"these are weights of {found}, and the model is {wanted.name}")
    for part, title in ((CLASSIFIER, "classifier"), (NORMS, "norms of the stage maps")):
        absent = [name for name in own if name.startswith(part) and name not in loaded]
        left_out = [name for name in loaded if name.startswith(part) and name not in own]
        loaded.update({name: own[name] for name in absent})
        for name in left_out:
            del loaded[name]
        notes += [f"{title} initialised afresh (not in the weights)"] * bool(absent)
        notes += [f"{title} left out (not in the model)"] * bool(left_out)
    different = sorted(own.keys() ^ loaded.keys())
    if different:
        raise ValueError(f"the weights are incomplete or of another variant (first difference: {different[0]})")
    for name, value in loaded.items():
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
    return loaded, notes


def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Load a state dict into a model of the same variant, and return a line for each tensor not loaded as is.

    Arguments and errors are those of `fit_weights`; after an error the model is as it was.
    """
    fitted, notes = fit_weights(model, state)
    model.load_state_dict(fitted)
    return notes
