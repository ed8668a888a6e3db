"""A job that was submitted to Slurm."""

import time
from pathlib import Path
from typing import ClassVar

from jobs import attempt_log
from jobs.attempt_log import last_outcome
from jobs.failure import find_killed_process, tail
from jobs.slurm import ask, own_job
from jobs.submission import FINAL_STATES, NO_ANSWER, Submission, Update

_GOES_ON = ("", "requeued", "lost", "peer lost")
"""Outcomes in the attempt log after which a job goes on, unless it is cancelled."""
REQUEUE_S = 30.0
"""A job that Slurm requeues may show PREEMPTED or NODE_FAIL for some seconds before it is PENDING again."""


def _slurm_holds(update: Update) -> bool:
    """Whether Slurm itself holds a job that it has requeued, such as one that could not be launched.

    One that a user or an administrator holds ("JobHeldUser", "JobHeldAdmin") waits as others do.
    """
    return update.state == "PENDING" and "held" in update.reason.lower() and not update.reason.startswith("JobHeld")


class SlurmSubmission(Submission):
    """A job in Slurm's queue."""

    cluster = "slurm"
    goes_on_alone = True
    _forgotten: ClassVar[dict[str, str]] = {
        "finished": "COMPLETED",
        "stopped": "COMPLETED",
        "cancelled": "CANCELLED",
        "requeued": "CANCELLED",
        "lost": "CANCELLED",
        "": "UNKNOWN",
    }
    """State of a job that Slurm has forgotten, by the last outcome in its attempt log; else it has failed.

    A job that was requeued was pending, and only a cancel ends it then.
    """

    def __init__(self, folder: Path, job_id: str, world_size: int) -> None:
        super().__init__(folder, job_id, world_size)
        self._transient_since: float | None = None

    def update(self) -> Update:
        """Ask Slurm. When Slurm has forgotten the job, derive the state from the attempt log.

        A cancel of which no rank could tell, since the job was pending or its ranks were killed, is added to that log.
        """
        job = own_job(self.folder, self.job_id)
        if job is not None:
            if job.state == "CANCELLED" and last_outcome(self.folder, self.job_id) in _GOES_ON:
                attempt_log.log_cancel(self.folder, self.job_id, job.restarts)
            return Update(
                state=job.state, reason=job.reason, restarts=job.restarts, nodes=job.nodes, exit_code=job.exit_code
            )
        state = self._forgotten.get(last_outcome(self.folder, self.job_id), "FAILED")
        return Update(state=state, reason="Slurm has forgotten the job")

    def is_over(self, update: Update) -> bool:
        """Whether Slurm will not start the job again. A requeued job that Slurm itself holds counts as over."""
        if _slurm_holds(update):
            return True
        if update.state not in FINAL_STATES | {"PREEMPTED", "UNKNOWN"}:
            self._transient_since = None
            return False
        if update.state in ("PREEMPTED", "NODE_FAIL", "UNKNOWN"):
            self._transient_since = self._transient_since or time.monotonic()
            return time.monotonic() - self._transient_since > REQUEUE_S
        return True

    def cancel(self) -> None:
        """Run scancel."""
        ask("scancel", self.job_id)

    def detach(self) -> str:
        """Leave the job alone."""
        return (
            f"job {self.job_id} goes on without this launcher; scancel {self.job_id} ends it; its logs: {self.folder}"
        )

    def failure(self) -> str:
        """Why the job failed: what the ranks reported, or else Slurm's state and the end of rank 0's log.

        That Slurm does not answer becomes part of the message, since the caller knows that the job has failed.
        """
        reported = super().failure()
        if reported:
            return reported
        update, _ = self.poll()
        if _slurm_holds(update):
            return (
                f"Slurm holds job {self.job_id} ({update.reason}): scontrol release {self.job_id} lets it go on, and "
                f"scancel {self.job_id} ends it"
            )
        if update.state in ("COMPLETED", "RUNNING", "PENDING"):
            return ""
        log_file = self.folder / f"{self.job_id}_0_log.out"
        # A rank that was killed leaves no error; srun names it.
        known = [update.reason, update.exit_code, find_killed_process(self.folder, self.job_id)]
        reason = f" ({', '.join(filter(None, known))})" if any(known) else ""
        last = tail(log_file)
        where = (
            f"\n  end of {log_file}:\n{last}"
            if last
            else f"; it left no log in {self.folder}: is that folder on a disk that the nodes see?"
        )
        how = "failed, and Slurm does not say how" if update.state == NO_ANSWER else f"ended as {update.state}"
        return f"job {self.job_id} {how}{reason}{where}"
