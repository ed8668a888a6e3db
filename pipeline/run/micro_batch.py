"""`RUN_DIR/micro_batch.json`: the micro-batch that `--train.micro-batch-size auto` has found for a run.

It is written once, at the run's first start, and read by every later attempt: which images share BatchNorm statistics
and are mixed stays the same. A mirror and a copy of the run have it too.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common.atomic import read_json, write_json
from pipeline.config.checks import check, with_micro_batch
from pipeline.config.schema import AUTO, ConfigError, TrainConfig
from pipeline.run.config import read_config
from pipeline.run.files import MICRO_BATCH_NAME, RunDirectoryError


@dataclass(frozen=True, kw_only=True)
class FoundMicroBatch:
    """A micro-batch that was found."""

    micro_batch_size: int
    """Samples of one forward pass of one rank."""
    world_size: int
    """Number of ranks that have looked for it."""
    decided_by: str = ""
    """The rank and the device whose memory takes the least, in words; empty: no memory was tried, as on CPUs."""

    def describe(self) -> str:
        """Describe it in a few words: the number, and how it was found."""
        how = f"found in the memory of {self.decided_by}" if self.decided_by else "auto without GPUs"
        return f"{self.micro_batch_size} ({how})"


def read_micro_batch(run_dir: Path) -> FoundMicroBatch | None:
    """Return the micro-batch that was found for a run; None: none was.

    Raises:
        RunDirectoryError: the file is damaged.
    """
    path = run_dir / MICRO_BATCH_NAME
    content = read_json(path)
    found = None if content is None else as_micro_batch(content)
    if found is None and path.exists():
        raise RunDirectoryError(
            f"{path} is damaged: restore it, or remove it and the next attempt finds the micro-batch anew"
        )
    return found


def as_micro_batch(content: dict[str, Any]) -> FoundMicroBatch | None:
    """Return what the file's JSON object holds; None if it holds no micro-batch. Fields of newer versions are left."""
    names = {field.name for field in dataclasses.fields(FoundMicroBatch)}
    known = {name: value for name, value in content.items() if name in names}
    size, world_size, decided_by = (content.get(name) for name in ("micro_batch_size", "world_size", "decided_by"))
    numbers = [number for number in (size, world_size) if isinstance(number, int) and number > 0]
    return FoundMicroBatch(**known) if len(numbers) == 2 and isinstance(decided_by, str) else None


def write_micro_batch(run_dir: Path, found: FoundMicroBatch) -> None:
    """Keep the micro-batch that was found for a run.

    Raises:
        RunDirectoryError: the file cannot be written.
    """
    path = run_dir / MICRO_BATCH_NAME
    try:
        write_json(path, dataclasses.asdict(found), durable=True)
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be written: {error.strerror}") from error


def with_found(config: TrainConfig, world_size: int, found: FoundMicroBatch | None) -> TrainConfig:
    """Return a configuration with the micro-batch that was found, where it has `auto` and one was; else as it is.

    Raises:
        ConfigError: the micro-batch does not fit this number of ranks.
    """
    if found is None or config.micro_batch_size != AUTO:
        return config
    try:
        return check(with_micro_batch(config, world_size, found.micro_batch_size), world_size)
    except ConfigError as error:
        raise ConfigError(
            f"{error} (this micro-batch was found on {found.world_size} ranks at the run's first start, and kept)"
        ) from None


def describe_micro_batch(run_dir: Path) -> str | None:
    """Describe the micro-batch of a run that has `auto` in a few words; None if the run has not.

    Raises:
        RunDirectoryError: the folder is no run directory.
    """
    if not has_auto(run_dir):
        return None
    try:
        found = read_micro_batch(run_dir)
    except RunDirectoryError as error:
        return str(error)
    return "not found yet (auto)" if found is None else found.describe()


def has_auto(run_dir: Path) -> bool:
    """Whether the micro-batch of a run is found, and not given.

    Raises:
        RunDirectoryError: the folder is no run directory.
    """
    return read_config(run_dir).train_fields.get("micro_batch_size") == AUTO
