"""What a recipe is: a training by name, where it runs unless told, and the data that it makes itself, if any."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs import Resources
from pipeline.config.schema import TrainConfig


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """A data set that a recipe makes itself, so that it needs none of the user's."""

    description: str
    """What the data are, for a line such as `data: the handwritten digits, which the launch packs`."""
    folder: str
    """Where the shards are made unless `--train.data.shards` names a folder; relative to the current directory."""
    is_packed: Callable[[Path], bool]
    """Whether the shards of both splits are in a folder."""
    pack: Callable[[Path], None]
    """Pack the shards into a folder, unless they are there already."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named training."""

    train: Callable[[], TrainConfig]
    """Returns the full configuration; its docstring has the command and the expected result."""
    resources: Resources = field(default_factory=Resources)
    """What it asks of the cluster unless told."""
    cluster: Literal["auto", "slurm", "local", "debug"] = "auto"
    """Where it runs unless told."""
    own_data: OwnData | None = None
    """The data it makes itself; None: the user packs the data with `sharding.build`."""
