"""Weights for a new run to start from: another run, the registry, a safetensors file, a published checkpoint."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.config import ConfigError

HEAD = "classifier.linear."
POSITION = ".position_bias.table"


def find_weights(source: str) -> Path:
    """The weights file that `source` means.

    Args:
        source: a run directory (its export), a `models:/` URI, or a `.safetensors`, `.pth` or `.pt` file.

    Raises:
        ConfigError: there is nothing there; no pickle is ever taken from a registry.
    """
    if source.startswith("models:/"):
        import mlflow

        from pipeline.tracking_client import mlflow_session, resolve_tracking_uri

        try:
            with mlflow_session(resolve_tracking_uri(Path.cwd())):
                folder = Path(mlflow.artifacts.download_artifacts(source))
        except Exception as error:
            raise ConfigError(f"--train.initialise-from {source} cannot be fetched: {error}") from error
        found = sorted(folder.rglob("*.safetensors"))
        if not found:
            raise ConfigError(f"--train.initialise-from {source} holds no .safetensors file")
        return found[0]
    path = Path(source)
    if path.is_dir():
        path = path / "export" / "model.safetensors"
    if not path.is_file():
        raise ConfigError(f"--train.initialise-from {source}: {path} does not exist")
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise ConfigError(f"--train.initialise-from {source}: a .safetensors, .pth or .pt file was expected")
    return path


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """State dict under this project's names, from a file under the published names; executes no pickle."""
    import transxnet

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)
        for wrapper in ("state_dict_ema", "state_dict", "model"):
            if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
                content = content[wrapper]
        state = {k.removeprefix("module."): v for k, v in content.items() if isinstance(v, torch.Tensor)}
    return transxnet.from_upstream(state)


def initialise(model: nn.Module, source: str) -> str:
    """Load weights into `model`; returns a line on what was taken and what was not.

    A classifier for another number of classes keeps its fresh weights; position bias tables of another image size are
    interpolated bicubically, as the network itself does for another input.

    Raises:
        ConfigError: the weights are of another network.
    """
    path = find_weights(source)
    try:
        state = read_weights(path)
    except ValueError as error:
        raise ConfigError(f"--train.initialise-from {source}: {error}") from error
    own = model.state_dict()
    said = [f"weights from {path}"]
    for name, value in list(state.items()):
        wanted = own[name].shape if name in own else None
        if wanted is None or value.shape == wanted:
            continue
        if name.startswith(HEAD):
            state[name] = own[name]
            said.append(f"{name} fresh ({value.shape[0]} classes there, {wanted[0]} here)")
        elif name.endswith(POSITION):
            state[name] = F.interpolate(value.float(), size=wanted[-2:], mode="bicubic", align_corners=False)
            said.append(f"{name} interpolated")
        else:
            raise ConfigError(f"--train.initialise-from {source}: {name} is {list(value.shape)}, not {list(wanted)}")
    missing = sorted(set(own) ^ set(state))
    if missing:
        raise ConfigError(f"--train.initialise-from {source} is of another variant (first difference: {missing[0]})")
    model.load_state_dict(state)
    return "; ".join(said)
