"""Asks the cluster how the jobs of runs stand, and whether a run will go on by itself."""

from pathlib import Path

from jobs import JobError, Submission, attach, is_running_locally
from pipeline.run.files import LOGS
from pipeline.run.status import RunStatus

OVER = ("finished", "failed", "cancelled")
"""States of a run that will not go on by itself."""


class Jobs:
    """The jobs of runs. It remembers each job between looks, because some ends show only in that a state lasts."""

    def __init__(self) -> None:
        self._submissions: dict[Path, Submission | None] = {}
        self._is_silent = False
        self._looked: dict[Path, tuple[str | None, bool]] = {}

    def refresh(self) -> None:
        """Forget the cluster's answers, so that it is asked again."""
        self._is_silent = False
        self._looked.clear()

    def describe(self, run_dir: Path) -> str | None:
        """Describe the run's job as the cluster's queue shows it; None for a local job or a cluster without answer."""
        return self._look(run_dir)[0]

    def is_over(self, status: RunStatus) -> bool:
        """Return whether the run will not go on by itself."""
        return status.state in OVER or (status.state != "running" and self.has_ended(status.run_dir))

    def has_ended(self, run_dir: Path) -> bool:
        """Return whether the run has no job that may still go on; False if the cluster does not answer."""
        return self._look(run_dir)[1]

    def _look(self, run_dir: Path) -> tuple[str | None, bool]:
        """Return the description of the run's job and whether it has ended, as of this look."""
        if run_dir not in self._looked:
            self._looked[run_dir] = self._ask(run_dir)
        return self._looked[run_dir]

    def _ask(self, run_dir: Path) -> tuple[str | None, bool]:
        folder = run_dir / LOGS
        if run_dir not in self._submissions:
            self._submissions[run_dir] = attach(folder)
        submission = self._submissions[run_dir]
        if submission is None:
            return None, not is_running_locally(folder)
        if self._is_silent:
            return None, False
        try:
            update = submission.update()
        except JobError as error:
            self._is_silent = True
            return f"{submission.job_id}, but {error}", False
        return f"{submission.job_id} {update}", submission.is_over(update)
