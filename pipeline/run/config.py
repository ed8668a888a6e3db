"""`RUN_DIR/config.json` as a typed object, which also reads runs of older and newer versions."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.config.schema import ConfigError, TrainConfig
from pipeline.config.serialise import flatten, from_dict
from pipeline.run.files import CONFIG_NAME, RunDirectoryError
from pipeline.tasks import DEFAULT, Task, find_task


@dataclass(frozen=True)
class RunConfig:
    """What `config.json` of a run says: the training, and the facts that its launch added.

    Only `train` requires that this version knows every field. A fact that the file does not hold is None.
    """

    path: Path
    """The file."""
    content: Mapping[str, Any]
    """Its JSON object."""

    @cached_property
    def train(self) -> TrainConfig:
        """The training.

        Raises:
            RunDirectoryError: a field is missing, or this version does not know it.
        """
        try:
            return from_dict(self.content["train"])
        except (KeyError, TypeError, ConfigError) as error:
            raise RunDirectoryError(f"{self.path} is not a configuration of this version: {error}") from error

    @cached_property
    def train_fields(self) -> Mapping[str, Any]:
        """Values of the training by dotted name, such as `optimizer.lr`."""
        return flatten(self.content["train"])

    @property
    def model_name(self) -> str:
        """Name of the network, such as `transxnet_t`."""
        return str(self.train_fields["model.name"])

    @property
    def task(self) -> Task:
        """What is learned."""
        return find_task(self.train_fields.get("task", DEFAULT))

    @property
    def global_batch_size(self) -> int:
        """Samples of one optimizer step over all ranks.

        Raises:
            RunDirectoryError: the file does not say it.
        """
        size = _whole(self.train_fields.get("global_batch_size"))
        if size is None:
            raise RunDirectoryError(f"{self.path} is not a configuration of this version: it has no global_batch_size")
        return size

    @property
    def registry_name(self) -> str:
        """Name of the registered model that the run becomes a version of: as launched with, else the network's."""
        return self.registered_name or self.model_name

    @property
    def registered_name(self) -> str | None:
        """Value of `--registered-name` at the launch."""
        return _text(self.content, "registered_name")

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole training."""
        return _whole(self.content.get("total_steps")) or _whole(self.train_fields.get("steps"))

    @property
    def training_split(self) -> tuple[str, str, str | None]:
        """Location of the training shards, the name of their split, and that of the data set if it was given."""
        fields = self.train_fields
        return fields["data.shards"], fields["data.train_split"], fields.get("data.name")

    @property
    def validation_split(self) -> tuple[str, str, str | None]:
        """Location of the validation shards, the name of their split, and that of the data set if it was given."""
        fields = self.train_fields
        location = fields["data.validation_shards"] or fields["data.shards"]
        return location, fields["data.validation_split"], fields.get("data.name")

    @property
    def training_digest(self) -> str | None:
        """Digest of the manifest of the training split when the run began."""
        return _text(_object(self.content, "dataset"), "digest")

    @property
    def validation_digest(self) -> str | None:
        """Digest of the manifest of the validation split when the run began."""
        return _text(_object(self.content, "dataset"), "validation_digest")

    @property
    def digest(self) -> str | None:
        """Digest of the fields that the result depends on (`pipeline.config.digest`)."""
        return _text(self.content, "digest")

    @property
    def tracking_uri(self) -> str | None:
        """MLflow store that the launch chose; None if `MLFLOW_TRACKING_URI` names it."""
        return _text(self.content, "tracking_uri")

    @property
    def experiment_id(self) -> str | None:
        """Value of `MLFLOW_EXPERIMENT_ID` at the launch."""
        return _text(self.content, "experiment_id")

    @property
    def experiment_name(self) -> str | None:
        """Value of `MLFLOW_EXPERIMENT_NAME` at the launch."""
        return _text(self.content, "experiment_name")

    @property
    def evaluation(self) -> Mapping[str, Any] | None:
        """Where checkpoints are evaluated beside the training: `cluster`, `name` and `resources` of the jobs.

        With `in_allocation` the training's own job evaluates them, and such jobs only what is left after it.
        None: the training evaluates them itself. Written by `pipeline.launch.evaluation`.
        """
        return _object(self.content, "evaluation") or None

    @property
    def initialised_from(self) -> str | None:
        """Weights that the training began from: a path or a `models:/NAME/NUMBER` URI; None: none."""
        return self.train_fields.get("initialise_from")

    @property
    def distilled_from(self) -> str | None:
        """Teacher that the network learns from (`--train.distill`); None: none."""
        return self.train_fields.get("distill")

    @property
    def sweep(self) -> Path | None:
        """Folder of the sweep that the run belongs to."""
        folder = _text(self.content, "sweep")
        return Path(folder) if folder else None

    @property
    def published(self) -> Mapping[str, Any]:
        """Published result that the training aims at (`result`, score), and its `differences`; empty if there is none.

        Written by `pipeline.recipes.published.describe_aim`.
        """
        return self.content.get("published") or {}

    @property
    def command(self) -> str:
        """Command that launched the run; empty if unknown."""
        command = self.content.get("command") or ""
        return command if isinstance(command, str) else shlex.join(map(str, command))

    @property
    def git_commit(self) -> str | None:
        """Commit of the code at the launch."""
        return _text(_object(self.content, "git"), "commit")

    @property
    def code(self) -> str | None:
        """The commit of the code at the launch, or the version and digest of packages that were installed elsewhere."""
        if self.git_commit is not None:
            return self.git_commit
        git = _object(self.content, "git")
        version, digest = _text(git, "version"), _text(git, "digest")
        return None if digest is None else f"version {version or 'unknown'}, files {digest}"

    @property
    def git_dirty(self) -> bool | None:
        """Whether the code had uncommitted changes at the launch."""
        return _object(self.content, "git").get("dirty")


def read_config(run_dir: Path) -> RunConfig:
    """Read `RUN_DIR/config.json`.

    Raises:
        RunDirectoryError: the folder is no run directory, or the file cannot be read or holds no training.
    """
    path = run_dir / CONFIG_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content["train"]["model"]["name"]
    except FileNotFoundError as error:
        raise RunDirectoryError(f"{run_dir} is no run directory: it has no {CONFIG_NAME}") from error
    except (KeyError, TypeError) as error:
        raise RunDirectoryError(f"{path} is not a configuration of this version: it has no model") from error
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"{path} cannot be read: {error}") from error
    return RunConfig(path, content)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(content: Mapping[str, Any], name: str) -> str | None:
    value = content.get(name)
    return value if isinstance(value, str) else None


def _object(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = content.get(name)
    return value if isinstance(value, dict) else {}
