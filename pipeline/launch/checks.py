"""The checks of a launch that look at what is there: the data, the weights to start from, the run's folder."""

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pipeline.common.atomic import read_json
from pipeline.config.schema import TrainConfig
from pipeline.launch.options import LaunchError
from pipeline.launch.plan import Plan, PlannedRun
from pipeline.recipes import RECIPES
from pipeline.run import directory as run_directory
from pipeline.run.config import read_config
from pipeline.run.files import REGISTERED_NAME
from pipeline.run.sweep import check_folder
from pipeline.tracking.client import TrackingError, check_model_uri
from pipeline.tracking.state import tracking_uri_of
from pipeline.train.schedule import build_schedule

if TYPE_CHECKING:
    from sharding import Manifest


class NotHereError(LaunchError):
    """Data or weights that this machine does not see; where the job will run they may be there."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What both splits hold, found before anything is queued."""

    num_samples: int
    num_validation: int
    num_classes: int
    digest: str
    validation_digest: str

    def __str__(self) -> str:
        """One line for people."""
        partial = "" if self.num_classes >= 1000 else f" (a model of {self.num_classes} classes is trained)"
        return (
            f"{self.num_samples:,} training and {self.num_validation:,} validation images "
            f"of {self.num_classes} classes{partial}"
        )


def check_weights(config: TrainConfig) -> None:
    """The weights that a new run starts from are there, as far as that shows without reading them.

    Raises:
        LaunchError: the file or folder is missing, or the registry does not know the version.
    """
    source = config.initialise_from
    if source is None:
        return
    if source.startswith("models:/"):
        try:
            check_model_uri(source)
        except TrackingError as error:
            raise LaunchError(f"--train.initialise-from {source}: {error}") from error
    elif not Path(source).exists():
        raise NotHereError(
            f"--train.initialise-from {source} does not exist: give a run directory, a models:/ URI, "
            "a .safetensors or a published .pth file"
        )


def check_shards(config: TrainConfig) -> Dataset:
    """Both splits are there and whole, with the same classes.

    Raises:
        NotHereError: a folder of shards is not there.
        LaunchError: the splits do not fit each other, a shard is not whole, or the storage does not answer.
        ShardingError: what is missing, and the command that makes it.
    """
    data = config.data
    train = _whole_split(data.shards, data.train_split, sizes=data.on_damage == "stop")
    validation = _whole_split(data.validation_location, data.validation_split)
    for location, split in ((data.shards, train), (data.validation_location, validation)):
        _check_cache(location, split, data.cache_gb)
    ours, theirs = [c.wnid for c in train.classes], [c.wnid for c in validation.classes]
    if ours != theirs:
        differing = sorted(set(ours) ^ set(theirs))[:3]
        raise LaunchError(
            f"the training split has {len(ours)} classes and the validation split {len(theirs)}, which differ "
            f"(in {', '.join(differing) or 'their order'}): pack both splits from one source"
        )
    return Dataset(
        num_samples=train.num_samples,
        num_validation=validation.num_samples,
        num_classes=len(ours),
        digest=train.digest,
        validation_digest=validation.digest,
    )


def _whole_split(location: str, split: str, *, sizes: bool = True) -> "Manifest":
    """The manifest of a split, with no shard missing or cut off: the training might come to it only after hours."""
    from pipeline.common.errors import one_line
    from sharding import ManifestError, load_manifest
    from sharding.storage import Folder

    try:
        manifest = load_manifest(location, split)
        there = {info.base_name: info.size for info in Folder.open(location).list()} if sizes else {}
    except ManifestError as error:
        if not Folder.open(location).exists():
            raise NotHereError(str(error)) from None
        raise
    except OSError as error:
        raise LaunchError(f"the shards at {location} cannot be read: {one_line(error)}") from error
    wrong = [shard for shard in manifest.shards if sizes and there.get(shard.name) != shard.bytes]
    if wrong:
        found, name = there.get(wrong[0].name), wrong[0].name
        state = "is missing" if found is None else f"has {found:,} bytes instead of {wrong[0].bytes:,}"
        others = f", and {len(wrong) - 1} more are not whole either" if len(wrong) > 1 else ""
        raise LaunchError(
            f"shard {name} of {location} {state}{others}: python -m sharding.verify --shards '{location}' names all "
            "damage; copy or pack it again"
        )
    return manifest


def _check_cache(location: str, manifest: "Manifest", cache_gb: float) -> None:
    """Refuse a cache that a shard of a remote split does not fit into."""
    from pyarrow.fs import LocalFileSystem

    from sharding import open_filesystem

    largest = max((shard.bytes for shard in manifest.shards), default=0)
    if largest > cache_gb * 1e9 and not isinstance(open_filesystem(location)[0], LocalFileSystem):
        raise LaunchError(
            f"--train.data.cache-gb {cache_gb:g} is less than a shard of {location} ({largest / 1e9:g} GB): raise it"
        )


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What the checks of a run have found.

    Attributes:
        dataset: what the data holds.
        total_steps: of the training.
        extra: what the run's `config.json` says beside the training.
    """

    dataset: Dataset
    total_steps: int
    extra: dict[str, Any]


def check_start(plan: Plan, run: PlannedRun) -> None:
    """What does not need the data: the weights of a new run; of one that goes on, its place in MLflow.

    Raises:
        LaunchError: in one line.
    """
    if not (run.run_dir / "config.json").exists():
        return check_weights(run.config)
    try:
        tracking_uri_of(run.run_dir)
    except ValueError as error:
        raise LaunchError(str(error)) from error
    name, there = plan.options.registered_name, read_json(run.run_dir / REGISTERED_NAME)
    if name is not None and there is not None and there["name"] != name:
        raise LaunchError(
            f"--registered-name {name}: {run.run_dir} is registered as {there['name']} already; under another name: "
            f"python -m pipeline.register {run.run_dir} --registered-name {shlex.quote(name)}"
        )


def check_run(plan: Plan, run: PlannedRun) -> Checked:
    """What needs the data: the shards, the length of the training, and whether the run's folder is of the same one.

    Raises:
        LaunchError, ShardingError, RunDirectoryError: in one line.
    """
    dataset = check_shards(run.config)
    total_steps = build_schedule(run.config, dataset.num_samples).total_steps
    extra = plan.extra() | {"dataset": dataclasses.asdict(dataset), "total_steps": total_steps}
    run_directory.check(run.run_dir, run.config, extra)
    if extra["registered_name"] is None and (run.run_dir / "config.json").exists():
        extra["registered_name"] = read_config(run.run_dir).registered_name
    return Checked(dataset=dataset, total_steps=total_steps, extra=extra)


def rehearse(plan: Plan) -> None:
    """Make the checks of a launch for all its runs and print what they find; nothing is written.

    Data and weights that this machine does not see are a warning: the cluster may.
    """
    if plan.options.sweep:
        check_folder(plan.run_dir)
    found: dict[str, TextIO] = {}
    for run in plan.runs:
        try:
            check_start(plan, run)
            own_data = RECIPES[plan.options.recipe].own_data
            if own_data is not None and not own_data.is_packed(Path(run.config.data.shards)):
                found[f"# data: {own_data.description}, which the launch packs"] = sys.stdout
                continue
            checked = check_run(plan, run)
            found[f"# data: {checked.dataset}; {checked.total_steps:,} steps"] = sys.stdout
        except NotHereError as error:
            found[f"warning: a launch from here would be refused: {error}"] = sys.stderr
    for words, stream in found.items():
        print(words, file=stream)
