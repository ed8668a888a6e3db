"""What the cluster says of the jobs of runs, in its own words, and whether any will go on by itself."""

from pathlib import Path

from jobs import JobError, Submission, attach, is_running_locally
from pipeline.run.status import RunStatus

OVER = ("finished", "failed", "cancelled")
"""States of a run to which nothing more will happen by itself."""


class Jobs:
    """The jobs of runs, looked at again and again: some ends show only in that a state lasts."""

    def __init__(self) -> None:
        self._submissions: dict[Path, Submission | None] = {}
        self._silent = False
        self._looked: dict[Path, tuple[str | None, bool]] = {}

    def next_look(self) -> None:
        """Forget what was said; the cluster is asked anew."""
        self._silent = False
        self._looked.clear()

    def words(self, run_dir: Path) -> str | None:
        """How the cluster's queue sees the run's job; None where it ran here, or the cluster has gone silent."""
        return self._look(run_dir)[0]

    def is_over(self, status: RunStatus) -> bool:
        """Whether nothing more will happen to the run by itself."""
        return status.state in OVER or (status.state != "running" and self.has_ended(status.run_dir))

    def has_ended(self, run_dir: Path) -> bool:
        """Whether the run's last job, if there was one, has ended for good; False where the cluster does not say."""
        return self._look(run_dir)[1]

    def _look(self, run_dir: Path) -> tuple[str | None, bool]:
        if run_dir not in self._looked:
            self._looked[run_dir] = self._ask(run_dir)
        return self._looked[run_dir]

    def _ask(self, run_dir: Path) -> tuple[str | None, bool]:
        folder = run_dir / "submitit"
        if run_dir not in self._submissions:
            self._submissions[run_dir] = attach(folder)
        submission = self._submissions[run_dir]
        if submission is None:
            return None, not is_running_locally(folder)
        if self._silent:
            return None, False
        try:
            update = submission.update()
        except JobError as error:
            self._silent = True
            return f"{submission.job_id}, but {error}", False
        return f"{submission.job_id} {update}", submission.is_over(update)
