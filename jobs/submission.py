"""A submitted job: follow it over its requeues, find out why it failed, cancel it."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs.attempt_log import last_outcome
from jobs.errors import SlurmError
from jobs.failure import describe_failure
from jobs.log import log
from jobs.submission_file import Submitted, write_submission
from jobs.task import Outcome

FINAL_STATES = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "NODE_FAIL"}
"""Slurm's states of a job that has ended."""

NO_ANSWER = "NO ANSWER"
"""State of a job while the cluster does not answer."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """How a job stands.

    Attributes:
        state: Slurm's state, or NO_ANSWER.
        reason: Slurm's reason for the state, or "".
        restarts: how often the job was requeued.
        nodes: nodes on which the job runs, or "".
        part: which job of a chain it is, or "".
        exit_code: how the job has ended, as «exit status 1», or "".
    """

    state: str
    reason: str = ""
    restarts: int = 0
    nodes: str = ""
    part: str = ""
    exit_code: str = ""

    def __str__(self) -> str:
        """One human-readable line."""
        parts = [self.state]
        if self.reason:
            parts.append(f"({self.reason})")
        if self.nodes:
            parts.append(f"on {self.nodes}")
        if self.restarts:
            parts.append(f"after {self.restarts} requeue{'s' if self.restarts > 1 else ''}")
        if self.part:
            parts.append(f"as {self.part}")
        return " ".join(parts)


class Submission(ABC):
    """One submitted job.

    Attributes:
        folder: folder of the job's scripts, pickles and logs.
        job_id: the cluster's name for the job.
        world_size: processes of the job.
    """

    cluster: str
    goes_on_alone = False
    """Whether the job goes on after the process that has submitted it has ended."""

    def __init__(self, folder: Path, job_id: str, world_size: int) -> None:
        self.folder = folder
        self.job_id = job_id
        self.world_size = world_size

    @property
    def job_ids(self) -> list[str]:
        """The jobs that were submitted: one, or those of a chain."""
        return [self.job_id]

    @abstractmethod
    def update(self) -> Update:
        """Ask the cluster how the job stands now.

        Raises:
            JobError: the cluster does not answer.
        """

    @abstractmethod
    def is_over(self, update: Update) -> bool:
        """Whether the job has ended and will not be started again."""

    @abstractmethod
    def cancel(self) -> None:
        """Cancel the job. It saves if the cluster leaves it the time, and is not requeued."""

    @abstractmethod
    def detach(self) -> str:
        """React to Ctrl-C at the launcher, and return a message that says what was done."""

    def failure(self) -> str:
        """Why the job failed: the first rank that failed, its error, and its log. "" if the job did not fail."""
        return describe_failure(self.folder, self.job_id, self.world_size)

    def wait(self, poll_s: float = 2.0, on_update: Callable[[Update], None] | None = None) -> Outcome:
        """Follow the job to its end, over all requeues.

        Args:
            poll_s: seconds between two queries.
            on_update: called after each query, also when nothing has changed.

        Returns:
            FINISHED, FAILED (`failure()` says why), CANCELLED, INTERRUPTED (the job stopped as asked and is not
            requeued), or DETACHED after Ctrl-C, when the job goes on without this launcher.
        """
        try:
            return self._follow(poll_s, on_update)
        except KeyboardInterrupt:
            log(f"\n{self.detach()}")
            return self._after_detach(poll_s, on_update)

    def poll(self) -> tuple[Update, Outcome | None]:
        """How the job stands, and its outcome once it is over."""
        try:
            update = self.update()
        except SlurmError as error:
            # The Slurm controller may be restarting, which does not end the job.
            return Update(state=NO_ANSWER, reason=str(error)), None
        return update, self._outcome(update) if self.is_over(update) else None

    def _follow(self, poll_s: float, on_update: Callable[[Update], None] | None) -> Outcome:
        while True:
            update, outcome = self.poll()
            if on_update is not None:
                on_update(update)
            if outcome is not None:
                return outcome
            time.sleep(poll_s)

    def _after_detach(self, poll_s: float, on_update: Callable[[Update], None] | None) -> Outcome:
        return Outcome.DETACHED

    def _outcome(self, update: Update) -> Outcome:
        last = last_outcome(self.folder, self.job_id)
        if last == "finished":
            # What comes after the end of the work, a cancel or a crash, does not undo it.
            return Outcome.FINISHED
        if update.state == "COMPLETED":
            return Outcome.INTERRUPTED if last in ("stopped", "cancelled", "requeued") else Outcome.FINISHED
        return Outcome.CANCELLED if update.state == "CANCELLED" else Outcome.FAILED

    def remember(self, task_folder: Path | None = None, *, is_chain: bool = False) -> None:
        """Write `submission.json`, from which `attach` finds the job, to `task_folder` or to the job's own folder."""
        submitted = Submitted(
            cluster=self.cluster,
            job_id=self.job_id,
            world_size=self.world_size,
            folder=self.folder,
            chain=tuple(self.job_ids) if is_chain else (),
        )
        write_submission(task_folder or self.folder, submitted)
