"""The attempt log of a job: one line for each start and each end of an attempt.

With it, a job that is requeued again and again without progress is ended.
"""

import contextlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


def log_path(folder: Path, job_id: str) -> Path:
    """The attempt log of a job. Each job has its own file, since the elements of an array write at the same time."""
    return folder / f"{job_id}_attempts.jsonl"


@dataclass(frozen=True, kw_only=True)
class AttemptEvent:
    """The start or the end of one attempt.

    Attributes:
        event: "start" or "end".
        job_id: the cluster's name for the job.
        restarts: how often the job was requeued before this attempt.
        time: seconds since 1970.
        host: node of rank 0.
        world_size: processes of the job.
        progress: the task's `progress()` at the start, or "".
        home: folder of the task, which holds its report; that of an element of an array is not the folder of the job.
        outcome: how the attempt ended: "finished", "requeued" (saved and requeued, or left to the next job of a chain),
            "stopped", "cancelled", "failed", "given up" (no progress), "peer lost" (another rank died), "lost" (ranks
            died, and the job was requeued or left to the next one).
        reason: human-readable reason of the outcome.
    """

    event: str
    job_id: str
    restarts: int
    time: float
    host: str = ""
    world_size: int = 0
    progress: str = ""
    home: str = ""
    outcome: str = ""
    reason: str = ""


def append(folder: Path, event: str, *, job_id: str, restarts: int, **fields: object) -> None:
    """Append one line and sync it to disk. Rank 0 writes, and after it the batch script, so that lines never mix."""
    row = {"event": event, "job_id": job_id, "restarts": restarts, "time": time.time(), **fields}
    with log_path(folder, job_id).open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(AttemptEvent(**row))) + "\n")
        file.flush()
        os.fsync(file.fileno())


def log_cancel(folder: Path, job_id: str, restarts: int) -> None:
    """Append that a job was cancelled, where no rank of it could: it was pending, or its ranks were killed.

    The folder may be another user's, or gone; then nothing is written.
    """
    with contextlib.suppress(OSError):
        append(folder, "end", job_id=job_id, restarts=restarts, outcome="cancelled", reason="Slurm")


def read(folder: Path, *job_ids: str) -> list[AttemptEvent]:
    """The attempt logs of one job, or of several in turn, oldest event first.

    A line that a crash cut short is left out.
    """
    return [event for job_id in job_ids for event in _read(folder, job_id)]


def _read(folder: Path, job_id: str) -> list[AttemptEvent]:
    try:
        lines = log_path(folder, job_id).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    events = []
    for line in lines:
        try:
            events.append(AttemptEvent(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return events


def last_outcome(folder: Path, job_id: str) -> str:
    """How the newest attempt of a job ended, or "" while it runs or when it was killed."""
    events = read(folder, job_id)
    return events[-1].outcome if events and events[-1].event == "end" else ""


def home(folder: Path, job_id: str) -> Path:
    """The folder of the task of a job; the folder of the job where rank 0 has not started."""
    homes = [event.home for event in read(folder, job_id) if event.home]
    return Path(homes[-1]) if homes else folder


def count_stalls(folder: Path, job_ids: Sequence[str], progress: str) -> int:
    """How many of the newest attempts of a job, or of the jobs of a chain, in turn started from `progress`."""
    count = 0
    for event in reversed(read(folder, *job_ids)):
        if event.event != "start":
            continue
        if event.progress != progress:
            break
        count += 1
    return count


def count_unstarted(folder: Path, job_ids: Sequence[str]) -> int:
    """How many of the newest attempts of a job, or of a chain, in turn were lost before rank 0 had started."""
    lost: list[tuple[str, int]] = []
    for event in reversed(read(folder, *job_ids)):
        if event.event == "start":
            return sum(attempt != (event.job_id, event.restarts) for attempt in lost)
        if event.outcome == "lost":
            lost.append((event.job_id, event.restarts))
    return len(lost)
