"""End an attempt that Slurm has given up although its node still runs, so that two attempts never write one folder.

A node that the controller cannot reach is taken for lost, and its job starts again elsewhere. The processes on it go on
if only the network to the controller is cut, or wake up when the node is back.
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

from jobs import attempt_log
from jobs.leave import leave
from jobs.log import log

LOOK_EVERY_S = 15.0


def newer_attempt(folder: Path, job_id: str, restarts: int) -> attempt_log.AttemptEvent | None:
    """The start of an attempt that has taken the place of this one: of the same job, or of a later job in the folder.

    Args:
        folder: folder of the job.
        job_id: Slurm's name for the job.
        restarts: how often the job had been requeued before this attempt.
    """
    for event in attempt_log.read(folder, job_id):
        if event.event == "start" and event.restarts > restarts:
            return event
    for later in _later_jobs(folder, job_id):
        for event in attempt_log.read(folder, later):
            if event.event == "start":
                return event
    return None


def _later_jobs(folder: Path, job_id: str) -> Iterator[str]:
    """The later jobs of a folder; none for an element of an array, whose folder is that of the other elements too."""
    if job_id.isdecimal():
        names = [path.name.removesuffix("_attempts.jsonl") for path in folder.glob("*_attempts.jsonl")]
        yield from (name for name in names if name.isdecimal() and int(name) > int(job_id))


def leave_if_superseded(folder: Path, job_id: str, restarts: int) -> None:
    """End this process, without a result and without a word to others, if a newer attempt has taken its place."""
    newer = newer_attempt(folder, job_id, restarts)
    if newer is not None:
        log(
            f"this attempt ends: Slurm had lost this node, and attempt {newer.restarts} of job {newer.job_id} "
            f"goes on with the work on {newer.host}"
        )
        leave(1)


def watch(folder: Path, job_id: str, restarts: int) -> None:
    """Look from a thread, as long as this process runs, whether a newer attempt has taken its place."""

    def look() -> None:
        while True:
            time.sleep(LOOK_EVERY_S)
            leave_if_superseded(folder, job_id, restarts)

    threading.Thread(target=look, name="superseded", daemon=True).start()
