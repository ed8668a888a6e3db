"""`sweep.json` in the folder of a sweep: what is swept, and the folders of its runs."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.common.atomic import read_json, write_json
from pipeline.config.schema import ConfigError
from pipeline.run.files import CONFIG_NAME

FILE_NAME = "sweep.json"
"""Holds `key` (which finds the sweep's parent run in MLflow), `sweep` (the flag's values) and `members` (folders)."""


def check_folder(folder: Path) -> None:
    """Refuse a folder that is a run directory.

    Raises:
        ConfigError: it is one.
    """
    if (folder / CONFIG_NAME).exists():
        raise ConfigError(f"--run-dir {folder} is the folder of a run, not of a sweep: take another one")


def prepare_folder(folder: Path, sweep: Sequence[str], names: Sequence[str]) -> None:
    """Write `sweep.json`, or add runs to the one there.

    Args:
        folder: folder of the sweep.
        sweep: values of `--sweep`.
        names: folders of the runs.

    Raises:
        ConfigError: the folder is a run directory.
    """
    check_folder(folder)
    known = {"key": uuid.uuid4().hex, "members": []} | (read_folder(folder) or {})
    members = list(dict.fromkeys([*known["members"], *names]))
    content = {"key": known["key"], "sweep": list(sweep), "members": members}
    write_json(folder / FILE_NAME, content, durable=True)


def read_folder(folder: Path) -> dict[str, Any] | None:
    """Read `sweep.json`; None if the folder is not that of a sweep."""
    return read_json(folder / FILE_NAME)
