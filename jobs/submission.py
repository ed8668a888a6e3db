"""A job that was submitted: follow it over its requeues, find its logs, say why it failed, end it."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jobs import attempts
from jobs.errors import NoAnswer
from jobs.failure import failure
from jobs.task import Outcome

LAST = "submission.json"
"""The newest submission of a folder: cluster, job id, number of processes, and where its logs are."""

NO_ANSWER = "NO ANSWER"
"""State of a job while the cluster does not tell one."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """How a job stands.

    Attributes:
        state: in Slurm's words, or NO_ANSWER.
        reason: why, in Slurm's words, or "".
        restarts: how often it was requeued.
        nodes: where it runs, or "".
    """

    state: str
    reason: str = ""
    restarts: int = 0
    nodes: str = ""

    def __str__(self) -> str:
        """One line for people."""
        parts = [self.state]
        if self.reason:
            parts.append(f"({self.reason})")
        if self.nodes:
            parts.append(f"on {self.nodes}")
        if self.restarts:
            parts.append(f"after {self.restarts} requeue{'s' if self.restarts > 1 else ''}")
        return " ".join(parts)


class Submission(ABC):
    """One submitted job.

    Attributes:
        folder: where its scripts, pickles and logs are.
        job_id: the cluster's name for it.
        world_size: its processes.
    """

    cluster: str

    def __init__(self, folder: Path, job_id: str, world_size: int) -> None:
        self.folder = folder
        self.job_id = job_id
        self.world_size = world_size

    @abstractmethod
    def update(self) -> Update:
        """Ask how the job stands now.

        Raises:
            JobError: the cluster does not answer.
        """

    @abstractmethod
    def is_over(self, update: Update) -> bool:
        """Whether the job has ended for good."""

    @abstractmethod
    def cancel(self) -> None:
        """End the job; it saves if the cluster gives it the time, and does not come back."""

    @abstractmethod
    def detach(self) -> str:
        """What to do when the person at the launcher interrupts: act, and return a sentence that says what was done."""

    def state(self) -> str:
        """The state in Slurm's words."""
        return self.update().state

    def log_paths(self) -> list[Path]:
        """The logs of all ranks, each with all its attempts in order; then those of the cluster's own scripts."""
        ranks = [self.folder / f"{self.job_id}_{rank}_log.out" for rank in range(self.world_size)]
        others = [self.folder / f"{self.job_id}_controller.log"]
        return [path for path in [*ranks, *others] if path.exists()]

    def failure(self) -> str:
        """Why the job failed, for people: the first rank that failed, its error, and its log. Empty if it did not."""
        return failure(self.folder, self.job_id, self.world_size)

    def wait(self, poll_s: float = 2.0, on_update: Callable[[Update], None] | None = None) -> Outcome:
        """Follow the job to its end, over all its requeues.

        Args:
            poll_s: seconds between two looks.
            on_update: called with each look, also when nothing has changed.

        Returns:
            FINISHED, FAILED (`failure()` says why), CANCELLED or INTERRUPTED (it stopped as asked and does not come
            back by itself), or DETACHED after Ctrl-C, when the job goes on without a watcher.
        """
        try:
            return self._follow(poll_s, on_update)
        except KeyboardInterrupt:
            print(f"\n{self.detach()}", flush=True)
            return self._after_detach(poll_s, on_update)

    def look(self) -> tuple[Update, Outcome | None]:
        """How the job stands, and what came of it once it is over."""
        try:
            update = self.update()
        except NoAnswer as error:
            # A controller that restarts is no end of the job.
            return Update(state=NO_ANSWER, reason=str(error)), None
        return update, self._outcome(update) if self.is_over(update) else None

    def _follow(self, poll_s: float, on_update: Callable[[Update], None] | None) -> Outcome:
        while True:
            update, outcome = self.look()
            if on_update is not None:
                on_update(update)
            if outcome is not None:
                return outcome
            time.sleep(poll_s)

    def _after_detach(self, poll_s: float, on_update: Callable[[Update], None] | None) -> Outcome:
        return Outcome.DETACHED

    def _outcome(self, update: Update) -> Outcome:
        last = last_end(self.folder, self.job_id)
        if update.state == "COMPLETED":
            return Outcome.INTERRUPTED if last in ("stopped", "cancelled") else Outcome.FINISHED
        return Outcome.CANCELLED if update.state == "CANCELLED" else Outcome.FAILED

    def remember(self, home: Path | None = None) -> None:
        """Write down in `home`, or in the job's own folder, where the job is, for `attach`."""
        home = home or self.folder
        words = {
            "cluster": self.cluster,
            "job_id": self.job_id,
            "world_size": self.world_size,
            "folder": str(self.folder),
        }
        beside = home / f"{LAST}.tmp"
        beside.write_text(json.dumps(words) + "\n")
        beside.replace(home / LAST)


def last_end(folder: Path, job_id: str) -> str:
    """How the newest attempt of a job ended, or "" while it runs or when it was killed."""
    rows = attempts.read(folder, job_id)
    return rows[-1].outcome if rows and rows[-1].event == "end" else ""
