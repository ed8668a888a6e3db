"""Asks the cluster how the jobs of runs stand, and whether a run will go on by itself."""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

from jobs import JobError, Submission, attach, is_running_locally
from pipeline.run.config import read_config
from pipeline.run.files import EVALUATIONS, LOGS
from pipeline.run.status import RunStatus

OVER = ("finished", "failed", "cancelled")
"""States of a run that will not go on by itself."""
_HAS_FAILED = ("FAILED", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "TIMEOUT", "DEADLINE")
"""States of Slurm's of a job that has ended without a run's end."""


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What the cluster says of a run's job."""

    description: str | None = None
    """As the queue shows it; None for a local job or a cluster without answer."""
    has_ended: bool = False
    """Whether there is no job that may still go on."""
    state: str = ""
    """Slurm's state of the job, or empty."""
    is_unknown: bool = False
    """Whether the file that names the job is damaged."""


class Jobs:
    """The jobs of runs. It remembers each job between looks, because some ends show only in that a state lasts."""

    def __init__(self) -> None:
        self._submissions: dict[Path, Submission | None] = {}
        self._is_silent = False
        self._looked: dict[Path, _Look] = {}

    def refresh(self) -> None:
        """Forget the cluster's answers, so that it is asked again."""
        self._is_silent = False
        self._looked.clear()

    def describe(self, run_dir: Path) -> str | None:
        """Describe the run's job as the cluster's queue shows it; None for a local job or a cluster without answer."""
        return self._look(run_dir).description

    def describe_evaluation(self, run_dir: Path) -> str:
        """Describe who will evaluate a run's checkpoints that await it."""
        settings = read_config(run_dir).evaluation
        if settings is None:
            return "the next attempt makes up for it"
        if self._training_evaluates(run_dir):
            return "beside the training, or at its end"
        look = self._look(run_dir / EVALUATIONS)
        if look.has_ended:
            return "no job is queued for it"
        if look.is_unknown:
            return str(look.description)
        return f"job {look.description}" if look.description else "a job on this machine"

    def is_over(self, status: RunStatus) -> bool:
        """Return whether the run will not go on by itself."""
        if status.state in OVER:
            return not self.evaluates(status)
        look = self._look(status.run_dir)
        return status.state != "running" and (look.has_ended or look.is_unknown)

    def evaluates(self, status: RunStatus) -> bool:
        """Return whether a job is queued that evaluates checkpoints of the run, as far as that is known."""
        if self._training_evaluates(status.run_dir):
            return bool(status.awaiting)
        look = self._look(status.run_dir / EVALUATIONS)
        return bool(status.awaiting) and not (look.has_ended or look.is_unknown)

    def _training_evaluates(self, run_dir: Path) -> bool:
        """Return whether a run evaluates in the training's allocation, and that has not ended, as far as is known."""
        if not (read_config(run_dir).evaluation or {}).get("in_allocation"):
            return False
        look = self._look(run_dir)
        return not (look.has_ended or look.is_unknown)

    def has_ended(self, run_dir: Path) -> bool:
        """Return whether the run has no job that may still go on; False if the cluster does not answer."""
        return self._look(run_dir).has_ended

    def complete(self, status: RunStatus) -> RunStatus:
        """Return the status with what the run's own files cannot tell.

        That is that its job was cancelled, never started, or has failed where no rank could record it.
        """
        if status.state in (*OVER, "running"):
            return status
        look = self._look(status.run_dir)
        if look.has_ended and look.state == "CANCELLED":
            return replace(status, state="cancelled")
        if look.has_ended and (look.state in _HAS_FAILED or (look.state and status.state == "submitted")):
            return replace(status, state="failed")
        return status

    def failure(self, run_dir: Path) -> str:
        """Return how the run's job has failed, as Slurm and the logs tell; empty if it has not, or nobody knows."""
        look, submission = self._look(run_dir), self._submissions.get(run_dir)
        if submission is None or not look.has_ended or look.state not in _HAS_FAILED:
            return ""
        with contextlib.suppress(JobError):
            return submission.failure()
        return ""

    def _look(self, run_dir: Path) -> _Look:
        """Return what the cluster says of the run's job, as of this look."""
        if run_dir not in self._looked:
            self._looked[run_dir] = self._ask(run_dir)
        return self._looked[run_dir]

    def _ask(self, run_dir: Path) -> _Look:
        folder = run_dir / LOGS
        if run_dir not in self._submissions:
            try:
                self._submissions[run_dir] = attach(folder)
            except JobError as error:
                return _Look(description=str(error), is_unknown=True)
        submission = self._submissions[run_dir]
        if submission is None:
            return _Look(has_ended=not is_running_locally(folder))
        if self._is_silent:
            return _Look()
        try:
            update = submission.update()
        except JobError as error:
            self._is_silent = True
            return _Look(description=f"{submission.job_id}, but {error}")
        return _Look(
            description=f"{submission.job_id} {update}", has_ended=submission.is_over(update), state=update.state
        )
