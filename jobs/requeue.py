"""Decide whether an interrupted job is requeued, and requeue it."""

import os
import signal
import subprocess
import time
from enum import Enum
from pathlib import Path
from typing import Any

from jobs.environment import Place
from jobs.errors import JobError
from jobs.failure import rank_errors
from jobs.slurm import slurm_job
from jobs.stop_flag import StopFlag

TRIES = 5
"""How often to try a requeue: the Slurm controller may be down when the loss of a node interrupts the job."""


class Decision(Enum):
    """What happens to a job whose task has saved and stopped."""

    REQUEUE = "the job requeues itself"
    ALREADY_REQUEUED = "Slurm has requeued the job"
    CANCELLED = "a user cancelled the job"
    STOPPED = "a user stopped the job"
    FAILED = "another rank failed"


def decide(cluster: str, folder: Path, place: Place, flag: StopFlag) -> Decision:
    """Decide on rank 0 what happens to the job, after all ranks have saved.

    On Slurm, a job is requeued unless a user cancelled it. On this machine, it is requeued only after USR1 or USR2,
    which announce a time limit or rehearse a preemption; TERM and INT come from a user. When a rank fails, srun sends
    TERM to the other ranks, and the job is not requeued.

    Args:
        cluster: "slurm", "local" or "debug".
        folder: folder of the job.
        place: place of this process in the job.
        flag: the flag with the signals that this process has received.
    """
    if any(not error.is_peer_loss for error in rank_errors(folder, place.job_id, place.world_size)):
        return Decision.FAILED
    if cluster != "slurm":
        announced = {signal.SIGUSR1, signal.SIGUSR2} & set(flag.received)
        return Decision.REQUEUE if cluster == "local" and announced else Decision.STOPPED
    try:
        job = slurm_job(place.job_id)
    except JobError:
        return Decision.REQUEUE
    if job is None or job.state == "CANCELLED":
        return Decision.CANCELLED
    if job.restarts > place.restarts:
        return Decision.ALREADY_REQUEUED
    if job.state == "COMPLETING" and job.reason != "TimeLimit":
        # A cancelled job whose processes still run is COMPLETING, without a reason.
        return Decision.CANCELLED
    return Decision.REQUEUE


def requeue(flag: StopFlag) -> None:
    """Call the signal handler that Submitit installed, which requeues the job and ends this process.

    Raises:
        JobError: the requeue failed `TRIES` times.
    """
    handler: Any = flag.previous[signal.SIGUSR2]
    for attempt in range(1, TRIES + 1):
        try:
            handler(signal.SIGUSR2, None)
        except (subprocess.SubprocessError, OSError) as error:
            if attempt == TRIES:
                raise JobError(f"the job has saved, but Slurm does not requeue it: {error}") from None
            time.sleep(2.0**attempt)
            remove_stale_pickles()


def remove_stale_pickles() -> None:
    """Remove the pickles that a killed attempt left behind.

    Submitit refuses to write a pickle while its temporary file exists, and takes a running job with a result for done.
    """
    from submitit import JobEnvironment

    paths = JobEnvironment().paths
    stale = [paths.result_pickle, paths.result_pickle.with_suffix(".pkl.save_tmp")]
    if int(os.environ.get("RANK", "0")) == 0:
        stale.append(paths.submitted_pickle.with_suffix(".pkl.save_tmp"))
    for path in stale:
        path.unlink(missing_ok=True)
