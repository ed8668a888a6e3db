"""The parts of a recipe: its training, its default resources, and the data that it makes itself, if any."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jobs import Cluster, Resources
from pipeline.config.schema import TrainConfig
from pipeline.recipes.published import Published

ClusterChoice = Literal["auto", Cluster]
"""Values of `--cluster`; `auto` is Slurm if it answers, else this machine."""


@dataclass(frozen=True, kw_only=True)
class OwnData:
    """A data set that a recipe makes itself, so that it needs none of the user's."""

    description: str
    """Name of the data in a line such as `data: the handwritten digits, which the launch packs`."""
    folder: str
    """The only folder that the data are packed into, relative to the current directory; the recipe's `data.shards`."""
    is_packed: Callable[[Path], bool]
    """Whether a folder holds the shards of both splits."""
    pack: Callable[[Path], None]
    """Packs the shards into a folder unless it holds them; refuses a folder that holds anything else."""

    def is_used_by(self, config: TrainConfig) -> bool:
        """Whether a training reads the data in their own folder: shards elsewhere are the user's, and not written."""
        return os.path.abspath(config.data.shards) == os.path.abspath(self.folder)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named training."""

    train: Callable[[], TrainConfig]
    """Returns the full configuration; its docstring states the command and the expected result."""
    resources: Resources = field(default_factory=Resources)
    """Resources that a launch asks for by default."""
    cluster: ClusterChoice = "auto"
    """Cluster of a launch by default."""
    published: Published | None = None
    """Published result that the recipe aims at."""
    starts_from: str | None = None
    """Registered weights that a new run starts from where the registry has them and the user names none."""
    needs_weights: bool = False
    """Whether it is meant to start from weights that the user gives: from random ones it hardly gets anywhere."""
    own_data: OwnData | None = None
    """Data that the recipe makes itself; None: the user packs the data with `sharding.build`."""
