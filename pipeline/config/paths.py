"""Paths among the fields of a training, made absolute once: its processes run in other folders than its launch."""

import dataclasses
import os
from typing import Any

from pipeline.config.schema import TrainConfig

TIMM = "timm:"
"""Beginning of the name of a model of timm, as a teacher."""
_LOCAL = f"{TIMM}local-dir:"
STAGE = "data.stage"
PATH_FIELDS = ("initialise_from", "distill", "data.shards", "data.validation_shards", "data.cache_dir", STAGE)
"""Fields that hold a path or, some of them, a URI; `STAGE` may begin with a variable of the node that runs the job."""


def absolute_path(value: str) -> str:
    """Return a path without `~` and `..`, below the working directory if it is relative; a URI as it is."""
    if value.startswith(_LOCAL):
        return _LOCAL + absolute_path(value.removeprefix(_LOCAL))
    if "://" in value or value.startswith(("models:/", TIMM)):
        return value
    return os.path.abspath(os.path.expanduser(value))


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Return the configuration with every path in it absolute."""
    return _replaced(config, "")


def _replaced(config: Any, prefix: str) -> Any:
    changes = {}
    for field in dataclasses.fields(config):
        name, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _replaced(value, f"{name}.")
        elif name in PATH_FIELDS and value is not None and not (name == STAGE and value.startswith("$")):
            changes[field.name] = absolute_path(value)
    return dataclasses.replace(config, **changes)
