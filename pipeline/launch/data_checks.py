"""The checks of a launch's data: both splits are complete, have the same classes, and share no images."""

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipeline.common.errors import one_line
from pipeline.config.schema import DataConfig, TrainConfig
from pipeline.launch.options import LaunchError
from pipeline.tasks import find_task

if TYPE_CHECKING:
    from sharding import Manifest


class NotHereError(LaunchError):
    """Data or weights that this machine does not see; the machine that runs the job may see them."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Size, classes and digests of both splits."""

    num_samples: int
    num_validation: int
    num_classes: int
    digest: str
    validation_digest: str
    is_its_own_validation: bool = False
    """Whether both splits hold the same images."""

    def __str__(self) -> str:
        """Describe the data in one line."""
        partial = "" if self.num_classes >= 1000 else f" (a model of {self.num_classes} classes is trained)"
        return (
            f"{self.num_samples:,} training and {self.num_validation:,} validation images "
            f"of {self.num_classes} classes{partial}"
        )


def check_shards(config: TrainConfig) -> Dataset:
    """Check that both splits are complete and have the same classes.

    Raises:
        NotHereError: a folder of shards does not exist.
        LaunchError: the splits have different classes or may share images, a shard is incomplete, or the storage
            does not answer.
        ShardingError: the message says what is missing, and which command makes it.
    """
    from sharding import describe_contradiction, division_flags

    data = config.data
    train = _complete_split(config, "train", data.shards, check_sizes=data.on_damage == "stop")
    validation = _complete_split(config, "validation", data.validation_location, beside=train)
    _check_cache(data.shards, train, data)
    _check_cache(data.validation_location, validation, data)
    for manifest in (train, validation):
        if manifest.task != config.task:
            raise LaunchError(
                f"{manifest.stem} was packed for {manifest.task}, and this training is a {config.task}: name "
                f"other shards, or take a recipe of {manifest.task}"
            )
    train_classes, validation_classes = [c.wnid for c in train.classes], [c.wnid for c in validation.classes]
    if train_classes != validation_classes:
        differing = sorted(set(train_classes) ^ set(validation_classes))[:3]
        raise LaunchError(
            f"the training split has {len(train_classes)} classes and the validation split {len(validation_classes)}, "
            f"which differ (in {', '.join(differing) or 'their order'}): pack both splits from one source"
        )
    contradiction = describe_contradiction({part.split: part.settings for part in (train, validation)})
    if contradiction is not None:
        divided = next(part for part in (train, validation) if part.settings.get("hold_out") is not None)
        raise LaunchError(
            f"of {train.name}, {contradiction}: pack both again into another folder: python -m sharding.build --source "
            f"IMAGES --output OTHER --name {train.name} {division_flags(divided.settings)}"
        )
    return Dataset(
        num_samples=train.num_samples,
        num_validation=validation.num_samples,
        num_classes=len(train_classes),
        digest=train.digest,
        validation_digest=validation.digest,
        is_its_own_validation=train.settings.get("listing_sha256", "") == validation.settings.get("listing_sha256"),
    )


def _complete_split(
    config: TrainConfig,
    part: Literal["train", "validation"],
    location: str,
    *,
    beside: "Manifest | None" = None,
    check_sizes: bool = True,
) -> "Manifest":
    """Return the manifest of the split that serves as this part, and check that no shard is missing or cut off.

    A training would read a damaged shard only after hours. The command that packs a missing split divides its source
    as the manifest `beside` it.
    """
    from sharding import ManifestError, MissingSplitError, division_flags, load_manifest
    from sharding.storage import Folder

    data, name = config.data, config.data.name
    split = data.train_split if part == "train" else data.validation_split
    images = f"IMAGES: {find_task(config.task).source}"
    try:
        manifest = load_manifest(location, split, name)
        sizes = {info.base_name: info.size for info in Folder.open(location).list()} if check_sizes else {}
    except MissingSplitError as error:
        name = name or (beside.name if beside is not None else None)
        named = f"--name {name} " if name else ""
        division = division_flags(beside.settings) if beside is not None and split == "validation" else ""
        raise LaunchError(
            f"{error}; pack it: python -m sharding.build --source IMAGES --output {shlex.quote(location)} {named}"
            f"--split {split}{' ' + division if division else ''} ({images}), or name another split: "
            f"--train.data.{part}-split"
        ) from None
    except ManifestError as error:
        if not Folder.open(location).exists():
            raise NotHereError(f"{error} ({images})") from None
        raise
    except OSError as error:
        raise LaunchError(f"the shards at {location} cannot be read: {one_line(error)}") from error
    damaged = [shard for shard in manifest.shards if check_sizes and sizes.get(shard.name) != shard.bytes]
    if damaged:
        first = damaged[0]
        size = sizes.get(first.name)
        state = "is missing" if size is None else f"has {size:,} bytes instead of {first.bytes:,}"
        others = f", and {len(damaged) - 1} more are damaged" if len(damaged) > 1 else ""
        raise LaunchError(
            f"shard {first.name} of {location} {state}{others}: python -m sharding.verify --shards '{location}' names "
            "all damage; copy or pack it again"
        )
    return manifest


def _check_cache(location: str, manifest: "Manifest", data: DataConfig) -> None:
    """Refuse a cache that is smaller than the largest shard of a split that is remote or staged."""
    from pyarrow.fs import LocalFileSystem

    from sharding import open_filesystem

    largest = max((shard.bytes for shard in manifest.shards), default=0)
    is_read_in_place = data.stage is None and isinstance(open_filesystem(location)[0], LocalFileSystem)
    if largest > data.cache_gb * 1e9 and not is_read_in_place:
        raise LaunchError(
            f"--train.data.cache-gb {data.cache_gb:g} is less than a shard of {location} ({largest / 1e9:g} GB): "
            "raise it"
        )
