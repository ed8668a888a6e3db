"""Whether an interrupted job comes back, and how."""

import os
import signal
import subprocess
import time
from enum import Enum
from pathlib import Path
from typing import Any

from jobs.cluster import slurm_job
from jobs.environment import Place
from jobs.errors import JobError
from jobs.failure import reports
from jobs.preemption import StopFlag

TRIES = 5
"""The controller may be down for a moment, just when a node's loss has interrupted the job."""


class Fate(Enum):
    """What happens to a job whose task has saved and stopped."""

    REQUEUE = "requeued by the job"
    REQUEUED = "requeued by Slurm"
    CANCELLED = "cancelled"
    STOPPED = "stopped as asked"
    FAILED = "another rank failed"


def fate(cluster: str, folder: Path, place: Place, flag: StopFlag) -> Fate:
    """Decide on rank 0, after all ranks have saved.

    On Slurm a job comes back unless somebody cancelled it; on this machine only after USR1 or USR2, which announce a
    time limit or rehearse a preemption, while TERM and INT come from a person. When a rank fails, srun sends TERM to
    the others, which is no reason to come back.
    """
    if any(not report.is_consequence for report in reports(folder, place.job_id, place.world_size)):
        return Fate.FAILED
    if cluster != "slurm":
        announced = {signal.SIGUSR1, signal.SIGUSR2} & set(flag.received)
        return Fate.REQUEUE if cluster == "local" and announced else Fate.STOPPED
    try:
        job = slurm_job(place.job_id)
    except JobError:
        return Fate.REQUEUE
    if job is None or job.state == "CANCELLED":
        return Fate.CANCELLED
    if job.restarts > place.restarts:
        return Fate.REQUEUED
    if job.state == "COMPLETING" and job.reason != "TimeLimit":
        # Slurm shows a cancelled job that still has processes as COMPLETING, without a reason.
        return Fate.CANCELLED
    return Fate.REQUEUE


def requeue(flag: StopFlag) -> None:
    """Hand over to the handler that Submitit had installed, which requeues the job and ends this process.

    Raises:
        JobError: the cluster refuses again and again.
    """
    handler: Any = flag.previous[signal.SIGUSR2]
    for attempt in range(1, TRIES + 1):
        try:
            handler(signal.SIGUSR2, None)
        except (subprocess.SubprocessError, OSError) as error:
            if attempt == TRIES:
                raise JobError(f"the job has saved, but Slurm does not requeue it: {error}") from None
            time.sleep(2.0**attempt)
            clear_leftovers()


def clear_leftovers() -> None:
    """Remove what an attempt that was killed half-way left behind, and Submitit would stumble over.

    A temporary pickle makes it refuse to write for ever; a result makes a running job look done.
    """
    from submitit import JobEnvironment

    paths = JobEnvironment().paths
    leftovers = [paths.result_pickle, paths.result_pickle.with_suffix(".pkl.save_tmp")]
    if int(os.environ.get("RANK", "0")) == 0:
        leftovers.append(paths.submitted_pickle.with_suffix(".pkl.save_tmp"))
    for path in leftovers:
        path.unlink(missing_ok=True)
