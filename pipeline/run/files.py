"""The files of a run: their names, and how they are read while another process writes them. No torch."""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.common.atomic import read_json
from pipeline.common.errors import PipelineError
from pipeline.tasks.metric import PREFIX as SCORE_PREFIX

CONFIG_NAME = "config.json"
METRICS_NAME = "metrics.jsonl"
"""Journal: one JSON object for every finished step."""
ATTEMPTS_NAME = "attempts.jsonl"
"""Attempt log: events of every attempt, one JSON object a line with `event`, `attempt` and `time`.

`start` (finished steps, ranks, and the steps of the previous attempt that are computed again), `first_step` (where the
start-up time went), `save` and `saved` (how long a checkpoint held up the training), `evaluate`, `back` (a return to a
checkpoint, to skip a batch), `preflight` (what it has found), `slow_rank`, `well_rank`, `hang` and `hang_over`
(`rank_troubles.py`), `end` (the outcome, and where the time went)."""
EVALUATIONS = "evaluations"
"""Folder of the evaluations that were made later than their step, one JSON file each, named as the checkpoint."""
REGISTERED_NAME = "registered.json"
"""The version that was registered last."""
TEACHER_NAME = "teacher.json"
"""The teacher of a distillation: its source, and the digest of its weights."""
MICRO_BATCH_NAME = "micro_batch.json"
"""The micro-batch that was found at the run's first start (`micro_batch.py`)."""
LOCK_NAME = ".lock"
"""Lock held by the attempt that trains."""
LOGS = "submitit"
"""Folder of the scripts, pickles and logs of the jobs."""
TRACES = "profile"
"""Folder of the profiler's traces and of the snapshots of GPU memory, one file for each attempt and rank."""
CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints."""
MANIFEST_NAME = "manifest.json"
"""File of a checkpoint that is written last, with the digests of the others."""
_TAIL_BYTES = 4096
_WHOLE = ("step", "attempt", "world_size", "lost_steps", "rank", "slowest_rank")
_TIMES = ("time", "began", "lost_until", "seconds", "end_s", "stall_s", "lost_s", "step_s")
_LATEST = 1e11
"""A greater number of seconds is no time: no calendar shows it."""
_NUMBERS = ("loss", "grad_norm", "lr", "images_per_s", "data_wait", "others_wait", "slowest_ratio", "ratio", "epoch")
_MAY_BE_MISSING = ("loss", "grad_norm")
"""Numbers that are null in the record of a batch that was skipped."""
_STEP = "step_"


class RunDirectoryError(PipelineError, ValueError):
    """A folder that cannot be used as a run directory."""


def read_records(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the records of a JSON-lines file, each with the offset of the next; stop at an unfinished line.

    Args:
        path: file; one that does not exist has no records.
        offset: byte to begin at.
    """
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
    """Return the records of all finished steps, oldest first, without a last line that a kill cut short.

    A record without `step` is left out, and so is a field whose value is not of its type: files are damaged by full
    disks, partial copies and editors. The scores of an evaluation that was made later are in the record of its step.
    """
    later = {step: _scores(result) for step, result in read_evaluations(run_dir).items()}
    records = (_typed(record) for record, _ in read_records(run_dir / METRICS_NAME))
    return [record | later.get(record["step"], {}) for record in records if "step" in record]


def read_evaluations(run_dir: Path) -> dict[int, dict[str, Any]]:
    """Return the evaluations that were made later than their step, by step: scores by key, and the primary metric."""
    paths = (run_dir / EVALUATIONS).glob(f"{_STEP}*.json")
    results = (_typed(content) for path in paths if (content := read_json(path)) is not None)
    return {result["step"]: result for result in results if "step" in result}


def _scores(result: dict[str, Any]) -> dict[str, Any]:
    """Return what a step's record gets of an evaluation."""
    return {key: value for key, value in result.items() if key.startswith(SCORE_PREFIX)}


def read_timed_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the records of `read_metrics` that also have `time`."""
    return [record for record in read_metrics(run_dir) if "time" in record]


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """Return the events of all attempts, oldest first, without a last line that a kill cut short.

    An event without `event`, `attempt` or `time` is left out, and so is a field whose value is not of its type.
    """
    events = (_typed(event) for event, _ in read_records(run_dir / ATTEMPTS_NAME))
    return [event for event in events if {"event", "attempt", "time"} <= event.keys()]


def read_registered(run_dir: Path) -> dict[str, Any] | None:
    """Return `registered.json` with `name`, `version`, `aliases` and `uri`; None if it is missing or names no model."""
    content = read_json(run_dir / REGISTERED_NAME)
    if content is None or not isinstance(content.get("name"), str):
        return None
    version, aliases, uri = (content.get(key) for key in ("version", "aliases", "uri"))
    known = {
        "version": version if isinstance(version, str) else "?",
        "aliases": [str(alias) for alias in aliases] if isinstance(aliases, list) else [],
    }
    known["uri"] = uri if isinstance(uri, str) else f"models:/{content['name']}/{known['version']}"
    return content | known


def _typed(record: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a record whose values are of their types; a field that is not known here stays."""

    def is_right(name: str, value: Any) -> bool:
        if name in ("event", "outcome"):
            return isinstance(value, str)
        if name == "parts":
            return isinstance(value, dict) and all(map(_is_number, value.values()))
        if name in _WHOLE:
            return isinstance(value, int) and not isinstance(value, bool)
        if name in _MAY_BE_MISSING and value is None:
            return True
        if name in _TIMES:
            return _is_number(value) and 0 <= value < _LATEST
        if name in _NUMBERS or name.startswith(SCORE_PREFIX):
            return _is_number(value) and (math.isfinite(value) or name in _MAY_BE_MISSING)
        return True

    return {name: value for name, value in record.items() if is_right(name, value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def newest_record(run_dir: Path) -> dict[str, Any] | None:
    """Return the newest record of the journal, read from its last bytes alone; None if there is none."""
    return next(recent_records(run_dir), None)


def recent_records(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the newest records of the journal, newest first, read from its last bytes alone."""
    try:
        with (run_dir / METRICS_NAME).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return
    for line in reversed(lines[:-1]):
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and "step" in (record := _typed(record)):
                yield record


def step_name(step: int) -> str:
    """Return the name of a checkpoint's folder: `step_00000100`."""
    return f"{_STEP}{step:08d}"


def step_folders(run_dir: Path) -> dict[int, Path]:
    """Return the folders of the published checkpoints by step, in no order."""
    folders = (path for path in (run_dir / CHECKPOINTS).glob(f"{_STEP}*") if path.is_dir())
    steps = {folder: folder.name.removeprefix(_STEP) for folder in folders}
    return {int(step): folder for folder, step in steps.items() if step.isdigit()}


def checkpoints(run_dir: Path) -> dict[int, Path]:
    """Return the folders of the complete checkpoints by step, in no order."""
    return {step: folder for step, folder in step_folders(run_dir).items() if (folder / MANIFEST_NAME).exists()}


def durable_step(run_dir: Path) -> int:
    """Return the step of the newest complete checkpoint, or -1."""
    return max(checkpoints(run_dir), default=-1)


def is_registered(run_dir: Path) -> bool:
    """Whether the run's model was registered."""
    return (run_dir / REGISTERED_NAME).exists()
