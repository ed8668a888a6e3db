"""Decide whether an interrupted job is requeued, and requeue it."""

import signal
import time
from enum import Enum
from pathlib import Path

from jobs.environment import Place
from jobs.errors import JobError, SlurmError
from jobs.failure import rank_errors
from jobs.log import log
from jobs.slurm import SlurmJob, ask, slurm_job
from jobs.stop_flag import StopFlag

PATIENCE_S = 300.0
"""How long to ask a Slurm controller that does not answer. It may be restarting, and without it nothing is requeued."""
REQUEUE_S = 60.0
"""Time limit of `scontrol requeue` in seconds."""
TRIES = 5
"""How often to repeat a requeue that Slurm refuses."""
_ENDED = {"CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE"}


class Decision(Enum):
    """What happens to a job whose task has saved and stopped."""

    REQUEUE = "the job requeues itself"
    ALREADY_REQUEUED = "Slurm has requeued the job"
    CANCELLED = "a user cancelled the job"
    STOPPED = "a user stopped the job"
    FAILED = "another rank failed"


_LEFT_TO_NEXT = {"COMPLETING", "PREEMPTED", "NODE_FAIL", "TIMEOUT"}
"""States in which the job of a chain was not cancelled, as far as can be told before its end."""


def decide(cluster: str, folder: Path, place: Place, flag: StopFlag, *, is_chained: bool = False) -> Decision:
    """Decide on rank 0 what happens to the job, after all ranks have saved.

    On Slurm, a job is requeued unless a user cancelled it (`ask_slurm`). On this machine, it is requeued only after
    USR1 or USR2, which announce a time limit or rehearse a preemption; TERM and INT come from a user. When a rank
    fails, srun sends TERM to the other ranks, and the job is not requeued.

    Args:
        cluster: "slurm", "local" or "debug".
        folder: folder of the job.
        place: place of this process in the job.
        flag: the flag with the signals that this process has received.
        is_chained: whether the job is one of a chain. One that is preempted without a grace time looks like one that a
            user cancels, until it has ended: the next job then sees which it was (`chain.why_over`), as it does where
            Slurm does not answer.

    Raises:
        JobError: Slurm does not answer.
    """
    if any(not error.is_peer_loss for error in rank_errors(folder, place.job_id, place.world_size)):
        return Decision.FAILED
    if cluster != "slurm":
        announced = {signal.SIGUSR1, signal.SIGUSR2} & set(flag.received)
        return Decision.REQUEUE if cluster == "local" and announced else Decision.STOPPED
    try:
        return _ask_slurm(place.job_id, place.restarts, is_chained=is_chained)[0]
    except JobError as error:
        if not is_chained:
            raise
        log(f"{error}; the next job of the chain asks again")
        return Decision.REQUEUE


def ask_slurm(job_id: str, restarts: int) -> Decision:
    """Ask Slurm whether a job that stopped early is to be requeued; ask again until Slurm says so or denies it.

    No answer is no decision, since the stop may come from a user who cancelled the job.

    Args:
        job_id: Slurm's name for the job.
        restarts: how often the job was requeued before this attempt.

    Returns:
        REQUEUE, ALREADY_REQUEUED or CANCELLED.

    Raises:
        JobError: Slurm does not answer within `PATIENCE_S`.
    """
    return _ask_slurm(job_id, restarts)[0]


def _ask_slurm(job_id: str, restarts: int, *, is_chained: bool = False) -> tuple[Decision, SlurmJob | None]:
    """As `ask_slurm`, with the answer of Slurm that led to the decision."""
    deadline = time.monotonic() + PATIENCE_S
    pause_s = 0.5
    while True:
        job = None
        try:
            job = slurm_job(job_id)
            decision = _decision_of(job, restarts)
            if is_chained and job is not None and job.state in _LEFT_TO_NEXT:
                decision = Decision.REQUEUE
            problem = "" if decision else "its state is not final"
        except SlurmError as error:
            decision, problem = None, str(error)
        if decision is not None:
            return decision, job
        if time.monotonic() + pause_s > deadline:
            raise JobError(f"the job has saved, but Slurm does not say whether it was cancelled: {problem}")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 10.0)


def _decision_of(job: SlurmJob | None, restarts: int) -> Decision | None:
    """What Slurm's answer means; None for a state that passes, such as SIGNALING or SUSPENDED."""
    if job is None:
        return Decision.CANCELLED
    if job.restarts > restarts:
        return Decision.ALREADY_REQUEUED
    if job.state == "RUNNING" or (job.state == "COMPLETING" and job.reason == "TimeLimit"):
        return Decision.REQUEUE
    # A cancelled job whose processes still run is COMPLETING, without a reason.
    return Decision.CANCELLED if job.state in _ENDED | {"COMPLETING"} else None


def requeue_on_slurm(job_id: str, restarts: int) -> Decision:
    """Requeue a job, unless a user cancels it, or Slurm requeues it, before that.

    A plain `scontrol requeue` would revive a job that is cancelled after the question. Therefore a running job is
    requeued as `incomplete`: the controller then passes over a job that has been cancelled by that moment, without a
    word, and is asked once more. A job at its time limit is complete already, and is requeued plainly. A Slurm that
    does not know the word takes it for the name of another job, refuses that one, and requeues this one.

    Returns:
        REQUEUE, or what Slurm has answered instead.

    Raises:
        JobError: Slurm refuses, or does not answer.
    """
    problem = ""
    for attempt in range(TRIES + 1):
        decision, job = _ask_slurm(job_id, restarts)
        if decision is Decision.ALREADY_REQUEUED and attempt > 0:
            return Decision.REQUEUE
        if decision is not Decision.REQUEUE:
            return decision
        time.sleep(attempt)
        is_running = job is not None and job.state == "RUNNING"
        try:
            ask("scontrol", "requeue", *(["incomplete"] if is_running else []), job_id, timeout_s=REQUEUE_S)
            problem = "it leaves it as it is"
        except SlurmError as error:
            problem = str(error)
    raise JobError(f"the job has saved, but Slurm does not requeue it: {problem}")
