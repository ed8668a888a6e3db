"""A chain: jobs that continue one run one after the other, where a site forbids that a job is requeued.

All of them are submitted at once. Each depends on the end of those before it, however they end, and finds on disk
where to go on. The rest of a chain is cancelled when the run has ended: finished, failed, given up or cancelled.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs import attempt_log
from jobs.errors import JobError, SlurmError
from jobs.failure import rank_errors
from jobs.log import log
from jobs.slurm import SlurmJob, ask, own_job
from jobs.submission_file import read_submission

TRIES = 3
"""How often a Slurm that does not answer is asked for the state of a job of the chain."""
PAUSE_S = 2.0
"""Seconds between two tries."""
LOOK_S = 60.0
"""Seconds after which a job asks for no other job of its chain: its ranks wait for rank 0 meanwhile."""


_MAY_HAVE_FAILED = ("", "failed", "peer lost")
"""Outcomes in the attempt log of a job, one of whose ranks may have left an error of its own."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The jobs of a chain, as seen from one of them.

    Attributes:
        before: the jobs before it, in order; empty for a job that is in no chain.
        after: the jobs after it.
        is_known: whether that is so; False where the file that lists them cannot be read, or lists others.
    """

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    is_known: bool = True

    @property
    def is_used_up(self) -> bool:
        """Whether it is known that no job follows, so that the run stops here until it is launched again."""
        return self.is_known and not self.after


def chain_of(folder: Path, job_id: str) -> Chain:
    """The chain of a job; where it cannot be read that is logged.

    Args:
        folder: folder of the job.
        job_id: Slurm's name for a job that was submitted as one of a chain.
    """
    try:
        submitted = read_submission(folder)
    except JobError as error:
        log(f"{error}; what follows this job of a chain goes on with the run; squeue --me shows it, scancel ends it")
        return Chain(is_known=False)
    jobs = () if submitted is None else submitted.chain
    if job_id not in jobs:
        return Chain(is_known=False)
    place = jobs.index(job_id)
    return Chain(before=jobs[:place], after=jobs[place + 1 :])


def why_over(folder: Path, chain: Chain, world_size: int) -> tuple[str, str] | None:
    """Why a run is not to be gone on with, where another job of its chain shows it: the outcome, and the reason.

    A user who has cancelled one job means the chain, also where no job could look at that time. A rank that has raised
    an error would raise it again. Both is kept in the attempt log, since Slurm forgets jobs.

    Returns:
        "cancelled" or "failed" and a reason for the user; None where the run goes on, or is finished.
    """
    if any(attempt_log.last_outcome(folder, job_id) == "finished" for job_id in chain.before):
        return None
    for job_id in chain.before:
        if attempt_log.last_outcome(folder, job_id) not in _MAY_HAVE_FAILED:
            continue
        errors = [error for error in rank_errors(folder, job_id, world_size) if not error.is_peer_loss]
        if errors:
            return "failed", f"in job {job_id} of the chain rank {errors[0].rank} failed: {errors[0].error}"
    # The nearest first: those before it have looked at the others.
    others = (*reversed(chain.before), *chain.after)
    for job_id in others:
        if attempt_log.last_outcome(folder, job_id) == "cancelled":
            return "cancelled", f"job {job_id} of the chain was cancelled"
    deadline = time.monotonic() + LOOK_S
    try:
        for number, job_id in enumerate(others):
            if time.monotonic() > deadline:
                raise SlurmError(f"it took {LOOK_S:.0f} s to answer for {number} of {len(others)} jobs")
            if _was_cancelled(folder, job_id, may_have_run=job_id in chain.before):
                return "cancelled", f"job {job_id} of the chain was cancelled"
    except SlurmError as error:
        log(f"Slurm does not say whether a job of this chain was cancelled, so the run goes on: {error}")
    return None


def _was_cancelled(folder: Path, job_id: str, *, may_have_run: bool) -> bool:
    """Whether a user has cancelled another job of the chain; what Slurm says of it is kept in its attempt log.

    Args:
        folder: folder of the job.
        job_id: Slurm's name for the other job.
        may_have_run: whether it comes before this one. A later job waits for this one to end: one that Slurm no longer
            has was cancelled.

    Raises:
        SlurmError: Slurm does not answer.
    """
    job = _ask_again(folder, job_id)
    is_cancelled = job.state == "CANCELLED" if job is not None else not may_have_run
    if is_cancelled:
        attempt_log.log_cancel(folder, job_id, 0 if job is None else job.restarts)
    return is_cancelled


def _ask_again(folder: Path, job_id: str) -> SlurmJob | None:
    for _ in range(TRIES - 1):
        try:
            return own_job(folder, job_id)
        except SlurmError:
            time.sleep(PAUSE_S)
    return own_job(folder, job_id)


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel the waiting jobs of a chain whose run has ended.

    Where Slurm refuses, that is logged: each of them then sees at its start that the run has ended.
    """
    try:
        if job_ids:
            ask("scancel", *job_ids)
    except SlurmError as error:
        log(f"cannot cancel what is left of the chain ({error}): scancel {' '.join(job_ids)}")
