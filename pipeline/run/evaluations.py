"""Evaluations that are made later than their step: which checkpoints await one, and their results on disk.

`RUN_DIR/evaluations/step_00000100.json` holds the scores of a step by their keys of `metrics.jsonl`, and the primary
metric. Whoever reads the records of the steps gets them joined (`read_metrics`).
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common.atomic import read_json, write_json
from pipeline.run.config import read_config
from pipeline.run.files import CHECKPOINTS, EVALUATIONS, MANIFEST_NAME, checkpoints, read_evaluations, step_name

AWAITS = "awaits_evaluation"
"""Entry of a checkpoint's manifest: an evaluation of its step was due, and was not made before it was saved."""
LEAVING_NAME = "leaving.json"
"""Which evaluation job ends."""
MAX_TRIES = 5
"""How often the evaluation of a checkpoint is begun that ends with an error, or with the end of its process."""
TRIES_NAME = "tries.json"
"""How many evaluations of each step have begun and come to no end, since their process was killed or failed."""


def write_evaluation(run_dir: Path, step: int, scores: Mapping[str, float], seconds: float) -> None:
    """Write the result of an evaluation, durably.

    Args:
        run_dir: of the run.
        step: finished steps of the weights.
        scores: scores of the task by name.
        seconds: how long the evaluation took.

    Raises:
        OSError: the disk is full.
    """
    of_task = read_config(run_dir).task.scores
    metric = of_task.metric(scores)
    folder = run_dir / EVALUATIONS
    folder.mkdir(mode=0o700, exist_ok=True)
    content = {"step": step, "time": time.time(), "seconds": round(seconds, 3), **of_task.record(scores)}
    stored = {"metric": None} if metric is None else metric.stored()
    write_json(folder / f"{step_name(step)}.json", content | stored, durable=True)


def write_problem(run_dir: Path, step: int, problem: str) -> None:
    """Write why a step is not evaluated; it no longer awaits its evaluation."""
    folder = run_dir / EVALUATIONS
    folder.mkdir(mode=0o700, exist_ok=True)
    content = {"step": step, "time": time.time(), "metric": None, "problem": problem}
    write_json(folder / f"{step_name(step)}.json", content, durable=True)


def describe_problems(run_dir: Path) -> list[str]:
    """Return a phrase for each step that could not be evaluated."""
    results = sorted(read_evaluations(run_dir).items())
    return [f"step {step} is not evaluated: {result['problem']}" for step, result in results if "problem" in result]


def begin_try(run_dir: Path, step: int) -> int:
    """Count an evaluation that begins; return how many of this step have begun and not ended by `end_try`."""
    tries = read_json(run_dir / EVALUATIONS / TRIES_NAME) or {}
    count = int(tries.get(str(step), 0)) + 1
    (run_dir / EVALUATIONS).mkdir(mode=0o700, exist_ok=True)
    write_json(run_dir / EVALUATIONS / TRIES_NAME, tries | {str(step): count}, durable=True)
    return count


def end_try(run_dir: Path, step: int) -> None:
    """Count no longer the last evaluation of a step that has begun: it came to its end, or was asked to stop."""
    tries = read_json(run_dir / EVALUATIONS / TRIES_NAME) or {}
    write_json(run_dir / EVALUATIONS / TRIES_NAME, tries | {str(step): int(tries.get(str(step), 1)) - 1})


def mark_leaving(run_dir: Path, job_id: str | None) -> None:
    """Tell that an evaluation job has found nothing to do and ends, before it looks a last time; None: it does not."""
    (run_dir / EVALUATIONS).mkdir(mode=0o700, exist_ok=True)
    write_json(run_dir / EVALUATIONS / LEAVING_NAME, {"job_id": job_id})
    if job_id is not None:
        _refresh(run_dir / CHECKPOINTS)


def is_leaving(run_dir: Path, job_id: str) -> bool:
    """Whether an evaluation job may not see a checkpoint that was published before this call."""
    _refresh(run_dir / EVALUATIONS)
    return (read_json(run_dir / EVALUATIONS / LEAVING_NAME) or {}).get("job_id") == job_id


def _refresh(folder: Path) -> None:
    """Have the next look at a folder on NFS show what other nodes have put there, not what it was a minute ago.

    The server answers a change with the state of the folder, by which the client drops what it has kept of it.
    """
    file = folder / f".refresh.{os.uname().nodename}.{os.getpid()}"
    with contextlib.suppress(OSError):
        file.touch()
        file.unlink()


def count_tries(run_dir: Path) -> int:
    """Return how many evaluations have begun and come to no end."""
    return sum(map(int, (read_json(run_dir / EVALUATIONS / TRIES_NAME) or {}).values()))


def drop_evaluations(run_dir: Path, after: int) -> None:
    """Remove the results of later steps than `after`, which will be computed again."""
    for step in read_evaluations(run_dir):
        if step > after:
            (run_dir / EVALUATIONS / f"{step_name(step)}.json").unlink(missing_ok=True)


def awaiting(run_dir: Path) -> list[int]:
    """Return the steps of the kept checkpoints whose evaluation is due and not made, the oldest first."""
    done = read_evaluations(run_dir)
    return sorted(step for step, path in checkpoints(run_dir).items() if step not in done and _awaits(path))


def _awaits(checkpoint: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        manifest: dict[str, Any] = json.loads((checkpoint / MANIFEST_NAME).read_text(encoding="utf-8"))
        return bool(manifest.get(AWAITS))
    return False
