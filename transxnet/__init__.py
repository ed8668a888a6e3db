"""TransXNet for image classification and dense prediction: reference PyTorch, fast kernels, published checkpoints.

Importing the package does not import torch: torch is imported when a model or a converter is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transxnet.config import VARIANTS, TransXNetConfig, config_for

if TYPE_CHECKING:
    from transxnet import dense
    from transxnet.model import TransXNet, build, leaf_modules, transxnet_b, transxnet_n, transxnet_s, transxnet_t
    from transxnet.pretrained import (
        config_of_weights,
        find_weights,
        fit_weights,
        load_weights,
        open_weights,
        read_weights,
    )
    from transxnet.upstream import from_upstream, to_upstream

__all__ = [
    "VARIANTS",
    "TransXNet",
    "TransXNetConfig",
    "build",
    "config_for",
    "config_of_weights",
    "dense",
    "find_weights",
    "fit_weights",
    "from_upstream",
    "leaf_modules",
    "load_weights",
    "open_weights",
    "read_weights",
    "to_upstream",
    "transxnet_b",
    "transxnet_n",
    "transxnet_s",
    "transxnet_t",
]

_MODULES = {
    **dict.fromkeys(("from_upstream", "to_upstream"), "transxnet.upstream"),
    **dict.fromkeys(
        ("config_of_weights", "find_weights", "fit_weights", "load_weights", "open_weights", "read_weights"),
        "transxnet.pretrained",
    ),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'transxnet' has no attribute {name!r}")
    if name == "dense":
        return import_module("transxnet.dense")
    value = getattr(import_module(_MODULES.get(name, "transxnet.model")), name)
    globals()[name] = value
    return value
