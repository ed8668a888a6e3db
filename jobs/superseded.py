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
CLOCKS_S = 60.0
"""How far, in seconds, the start of this process and that in the attempt log may be apart, and so the nodes' clocks."""
_STARTED = time.time()


def newer_attempt(folder: Path, job_id: str, restarts: int, since: float) -> attempt_log.AttemptEvent | None:
    """The start of an attempt that has taken the place of this one: of the same job, or of a later job in the folder.

    Args:
        folder: folder of the job.
        job_id: Slurm's name for the job.
        restarts: how often the job had been requeued before this attempt.
        since: seconds since 1970 at which this attempt started. An older one with a higher id is of a cluster that
            counts otherwise, such as one that was set up again.
    """
    for event in attempt_log.read(folder, job_id):
        if event.event == "start" and event.restarts > restarts and event.time > since:
            return event
    for later in _later_jobs(folder, job_id):
        for event in attempt_log.read(folder, later):
            if event.event == "start" and event.time > since:
                return event
    return None


def own_start(folder: Path, job_id: str, restarts: int) -> float | None:
    """When rank 0 of this attempt has started, in seconds since 1970; None where it has not, or not yet."""
    events = attempt_log.read(folder, job_id)
    return max((event.time for event in events if event.event == "start" and event.restarts == restarts), default=None)


def start_of_attempt(logged: float | None, process: float) -> float:
    """The start of this attempt, on the clock of the attempt log as far as it can be told.

    Args:
        logged: from `own_start`. It may be of a former job with the same id, or late, after a node had stood still.
        process: when this process has started, in seconds since 1970.
    """
    earliest = process - CLOCKS_S
    return earliest if logged is None else min(max(logged, earliest), process + CLOCKS_S)


def _later_jobs(folder: Path, job_id: str) -> Iterator[str]:
    """The later jobs of a folder; none for an element of an array, whose folder is that of the other elements too."""
    if job_id.isdecimal():
        names = [path.name.removesuffix("_attempts.jsonl") for path in folder.glob("*_attempts.jsonl")]
        yield from (name for name in names if name.isdecimal() and int(name) > int(job_id))


def leave_if_superseded(folder: Path, job_id: str, restarts: int) -> None:
    """End this process, without a result and without a word to others, if a newer attempt has taken its place."""
    since = start_of_attempt(own_start(folder, job_id, restarts), _STARTED)
    newer = newer_attempt(folder, job_id, restarts, since)
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
