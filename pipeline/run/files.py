"""The files of a run that several parts read: their names, and how they are read while others write them. No torch."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.common.errors import PipelineError


class RunDirectoryError(PipelineError, ValueError):
    """A folder that cannot be used as a run directory."""


CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.jsonl"
"""One JSON object for every finished step."""
ATTEMPTS_NAME = "attempts.jsonl"
"""Events of every attempt, one JSON object a line with `event`, `attempt` and `time`.

`start` (finished steps, ranks, and what the attempt before computed in vain), `first_step` (what the start-up was spent
on), `save` and `saved` (how long a checkpoint held the training up), `evaluate`, `back` (to a checkpoint, to skip a
batch), `end` (outcome, and where the time went)."""
LOCK_NAME = ".lock"
"""Held by the attempt that trains."""


def read_records(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Records of a JSON-lines file from byte `offset`, each with the offset behind it; stops at an unfinished line."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                offset += len(line)
                with contextlib.suppress(ValueError):
                    record = json.loads(line)
                    if isinstance(record, dict):
                        yield record, offset
    except FileNotFoundError:
        return


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All whole records of the steps of a run, oldest first; a line that a kill cut short is left out."""
    return [record for record, _ in read_records(run_dir / METRICS_NAME)]


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """All whole events of the attempts of a run, oldest first; a line that a kill cut short is left out."""
    return [event for event, _ in read_records(run_dir / ATTEMPTS_NAME)]


def checkpoints(run_dir: Path) -> dict[int, Path]:
    """Folders of the complete checkpoints by step, in no order."""
    folders = (path.parent for path in run_dir.glob("checkpoints/step_*/manifest.json"))
    steps = {folder: folder.name.removeprefix("step_") for folder in folders}
    return {int(step): folder for folder, step in steps.items() if step.isdigit()}


def durable_step(run_dir: Path) -> int:
    """Step of the newest complete checkpoint, -1 without one."""
    return max(checkpoints(run_dir), default=-1)


REGISTERED_NAME = "registered.json"
"""In the run's folder: the version that was registered last."""


def is_registered(run_dir: Path) -> bool:
    """Whether the model is in the registry."""
    return (run_dir / REGISTERED_NAME).exists()


TAIL_BYTES = 4096


def newest_record(run_dir: Path) -> dict[str, Any] | None:
    """The last whole record of the journal, from its last bytes alone."""
    return next(recent_records(run_dir), None)


def recent_records(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the last whole records of the journal, newest first, from its last bytes alone."""
    try:
        with (run_dir / METRICS_NAME).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return
    for line in reversed(lines[:-1]):
        with contextlib.suppress(ValueError):
            yield json.loads(line)
