"""A submitted chain of jobs, which is followed as one."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from jobs import chain
from jobs.attempt_log import last_outcome, log_path
from jobs.errors import SlurmError
from jobs.slurm import ask, own_job
from jobs.slurm_submission import SlurmSubmission
from jobs.submission import FINAL_STATES, Update
from jobs.task import Outcome

_ENDED = FINAL_STATES | {"PREEMPTED", "UNKNOWN"}
_LAST = ("finished", "cancelled", "given up", "failed")
"""Outcomes in the attempt log after which no job of the chain goes on.

After "stopped" one may: a job that is interrupted while its chain is still submitted takes itself for the last one.
"""


class ChainSubmission(SlurmSubmission):
    """A chain in Slurm's queue; `job_id` is the job with which the chain stands."""

    # No job of a chain is requeued: one that has lost ranks has failed.
    _forgotten: ClassVar[dict[str, str]] = SlurmSubmission._forgotten | {"lost": "FAILED"}

    def __init__(self, folder: Path, job_ids: Sequence[str], world_size: int) -> None:
        super().__init__(folder, job_ids[0], world_size)
        self._job_ids = list(job_ids)

    @property
    def job_ids(self) -> list[str]:
        """All jobs of the chain, in order."""
        return self._job_ids

    def update(self) -> Update:
        """Ask Slurm how the chain stands: the next job takes over when one has ended and has left work."""
        update = super().update()
        while update.state in _ENDED and last_outcome(self.folder, self.job_id) not in _LAST:
            following = self._following()
            if not following:
                break
            self.job_id = following
            update = super().update()
        number = self._job_ids.index(self.job_id) + 1
        if update.state in _ENDED and last_outcome(self.folder, self.job_id) == "stopped":
            update = replace(update, reason="no job is left: launch again to go on")
        return replace(update, part=f"job {number} of {len(self._job_ids)}")

    def is_over(self, update: Update) -> bool:
        """Whether no job of the chain will start any more. One that is held has its place, and waits to be released."""
        return update.state in _ENDED

    def cancel(self) -> None:
        """Run scancel for all jobs that are left."""
        ask("scancel", *self._left())

    def detach(self) -> str:
        """Leave the jobs alone."""
        left = " ".join(self._left())
        return f"the chain goes on without this launcher; scancel {left} ends it; its logs: {self.folder}"

    def end_rest(self) -> None:
        """Cancel what is still in the queue of a chain that has ended.

        Only jobs that log to this folder are cancelled: Slurm may have given an old id to another job.
        """
        queued = []
        for job_id in self._left()[1:]:
            with contextlib.suppress(SlurmError):
                job = own_job(self.folder, job_id)
                if job is not None and job.state not in _ENDED:
                    queued.append(job_id)
        chain.cancel(queued)

    def _outcome(self, update: Update) -> Outcome:
        outcome = super()._outcome(update)
        if outcome is Outcome.INTERRUPTED and self._left()[1:]:
            # It has left the work to the next job, which a user has cancelled.
            outcome = Outcome.CANCELLED
        self.end_rest()
        return outcome

    def _left(self) -> list[str]:
        return self._job_ids[self._job_ids.index(self.job_id) :]

    def _following(self) -> str:
        """The next job that has started or will start, unless one before it was cancelled while it waited; else "".

        A job that has left no attempt log and that Slurm has forgotten is passed over.
        """
        for job_id in self._left()[1:]:
            if log_path(self.folder, job_id).exists():
                return job_id
            job = own_job(self.folder, job_id)
            if job is not None:
                return "" if job.state == "CANCELLED" else job_id
        return ""
