"""The attempts of a run, on disk: what stops a job that would be requeued for ever without getting anywhere."""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path


def book(folder: Path, job_id: str) -> Path:
    """The file of a job's attempts: one each, since the elements of an array write at the same time."""
    return folder / f"{job_id}_attempts.jsonl"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a job, or its end.

    Attributes:
        event: "start" or "end".
        job_id: the cluster's name for the job.
        restarts: how often the job was requeued before this attempt.
        time: seconds since 1970.
        host: where rank 0 runs.
        world_size: processes of the job.
        progress: where the work stood at the start, or "".
        outcome: how it ended: "finished", "requeued" (saved, and came back), "stopped", "cancelled", "failed",
            "given up" (no progress), "peer lost" (another rank vanished), "lost" (ranks vanished, the job came back).
        reason: why, for people.
    """

    event: str
    job_id: str
    restarts: int
    time: float
    host: str = ""
    world_size: int = 0
    progress: str = ""
    outcome: str = ""
    reason: str = ""


def record(folder: Path, event: str, *, job_id: str, restarts: int, **fields: object) -> None:
    """Append one line and see it on the disk. Rank 0 writes, and the batch script after it: lines never mix."""
    row = {"event": event, "job_id": job_id, "restarts": restarts, "time": time.time(), **fields}
    with book(folder, job_id).open("a") as file:
        file.write(json.dumps(asdict(Attempt(**row))) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path, job_id: str) -> list[Attempt]:
    """All that was recorded of a job, oldest first; a line cut short by a crash is left out."""
    try:
        lines = book(folder, job_id).read_text().splitlines()
    except OSError:
        return []
    attempts = []
    for line in lines:
        try:
            attempts.append(Attempt(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return attempts


def stalled(folder: Path, job_id: str, progress: str) -> int:
    """How many attempts of this job in a row, up to now, started from `progress`."""
    count = 0
    for attempt in reversed(read(folder, job_id)):
        if attempt.event != "start":
            continue
        if attempt.progress != progress:
            break
        count += 1
    return count
