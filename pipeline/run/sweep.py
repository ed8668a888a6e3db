"""TODO run.sweep."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.common.atomic import read_json, write_json
from pipeline.config.schema import ConfigError

FILE_NAME = "sweep.json"
"""In the folder of a sweep: `key` (its name in MLflow before that gives one), `sweep` and `members` (folders in it)."""


def check_folder(folder: Path) -> None:
    """Refuse a folder that is a run's own.

    Raises:
        ConfigError: in one line.
    """
    if (folder / "config.json").exists():
        raise ConfigError(f"--run-dir {folder} is the folder of a run, not of a sweep: take another one")


def prepare_folder(folder: Path, sweep: Sequence[str], names: Sequence[str]) -> None:
    """Note in the folder what is swept; values may be added later, and those that were there stay.

    Raises:
        ConfigError: the folder is a run's own.
    """
    check_folder(folder)
    known = read_folder(folder) or {"key": uuid.uuid4().hex, "members": []}
    members = list(dict.fromkeys([*known["members"], *names]))
    document = {"key": known["key"], "sweep": list(sweep), "members": members}
    write_json(folder / FILE_NAME, document, durable=True)


def read_folder(folder: Path) -> dict[str, Any] | None:
    """What is noted of a sweep; None where the folder is none."""
    return read_json(folder / FILE_NAME)
