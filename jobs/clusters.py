"""What a submission is on each kind of cluster."""

import contextlib
import os
import pdb
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import attempts
from jobs.cluster import ask, slurm_job
from jobs.failure import last_error, tail
from jobs.submission import Submission, Update, last_end
from jobs.task import Outcome

OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "NODE_FAIL"}
"""States in which Slurm leaves a job that does not come back."""
SETTLE_S = 30.0
"""A job that Slurm requeues passes through such a state, or through PREEMPTED, before it is PENDING again."""


class SlurmSubmission(Submission):
    """A job in Slurm's queue."""

    cluster = "slurm"

    def __init__(self, folder: Path, job_id: str, world_size: int) -> None:
        super().__init__(folder, job_id, world_size)
        self._passing_since: float | None = None

    def update(self) -> Update:
        """Ask Slurm; without its memory of the job, read how the last attempt ended."""
        job = slurm_job(self.job_id)
        if job is not None:
            return Update(state=job.state, reason=job.reason, restarts=job.restarts, nodes=job.nodes)
        known = {"finished": "COMPLETED", "cancelled": "CANCELLED", "": "UNKNOWN"}
        return Update(state=known.get(last_end(self.folder, self.job_id), "FAILED"), reason="Slurm has forgotten it")

    def is_over(self, update: Update) -> bool:
        """Whether Slurm will not start it again, also when it says so only by holding it."""
        if update.state == "PENDING" and "held" in update.reason.lower():
            return True
        if update.state not in OVER | {"PREEMPTED", "UNKNOWN"}:
            self._passing_since = None
            return False
        if update.state in ("PREEMPTED", "NODE_FAIL", "UNKNOWN"):
            self._passing_since = self._passing_since or time.monotonic()
            return time.monotonic() - self._passing_since > SETTLE_S
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
        """Add what Slurm knows to what the ranks have left."""
        words = super().failure()
        if words:
            return words
        update = self.update()
        if update.state in ("COMPLETED", "RUNNING") or (update.state == "PENDING" and "held" not in update.reason):
            return ""
        log = self.folder / f"{self.job_id}_0_log.out"
        reason = f" ({update.reason})" if update.reason else ""
        last = tail(log)
        where = f"\n  end of {log}:\n{last}" if last else f"; it left no log in {self.folder}"
        return f"job {self.job_id} ended as {update.state}{reason}{where}"


class LocalSubmission(Submission):
    """Processes on this machine, under a controller that this process started."""

    cluster = "local"

    def __init__(self, folder: Path, job_id: str, world_size: int, process: "subprocess.Popen[Any]") -> None:
        super().__init__(folder, job_id, world_size)
        self._process = process

    def update(self) -> Update:
        """Look at the controller."""
        restarts = sum(row.outcome == "requeued" for row in attempts.read(self.folder, self.job_id))
        code = self._process.poll()
        if code is None:
            return Update(state="RUNNING", restarts=restarts)
        return Update(state="COMPLETED" if code == 0 else "FAILED", restarts=restarts)

    def is_over(self, update: Update) -> bool:
        """Whether the controller has ended, and with it all ranks."""
        return update.state != "RUNNING"

    def cancel(self) -> None:
        """Ask the ranks to save and stop."""
        self._signal(signal.SIGTERM)

    def detach(self) -> str:
        """Ask the ranks to save and stop: they are this launcher's processes."""
        self.cancel()
        return f"asked the {self.world_size} processes to save and stop; Ctrl-C again ends them at once"

    def _after_detach(self, poll_s: float, on_update: Callable[[Update], None] | None) -> Outcome:
        try:
            self._follow(poll_s, on_update)
        except KeyboardInterrupt:
            self._signal(signal.SIGQUIT)
            self._process.wait()
        return Outcome.INTERRUPTED

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def failure(self) -> str:
        """Add what the controller saw to what the ranks have left."""
        words = super().failure()
        if words or self._process.poll() in (None, 0):
            return words
        log = self.folder / f"{self.job_id}_controller.log"
        return f"job {self.job_id} failed: {tail(log) or 'its controller was killed'}\n  logs: {self.folder}"


class DebugSubmission(Submission):
    """The job inside this process: it runs when it is waited for."""

    cluster = "debug"

    def __init__(self, folder: Path, job_id: str, job: Any) -> None:
        super().__init__(folder, job_id, 1)
        self._job = job
        self._state = "PENDING"
        self._failure = ""
        self._outcome_of_task = Outcome.FAILED

    def update(self) -> Update:
        """Tell the state without starting anything."""
        return Update(state=self._state)

    def is_over(self, update: Update) -> bool:
        """Whether it has run."""
        return update.state in OVER

    def cancel(self) -> None:
        """Do not start it."""
        self._state = "CANCELLED"

    def detach(self) -> str:
        """Nothing is left to leave."""
        return "interrupted"

    def failure(self) -> str:
        """The error of the task."""
        return self._failure

    def wait(self, poll_s: float = 2.0, on_update: Callable[[Update], None] | None = None) -> Outcome:
        """Run the task now; after an error, at a terminal, open the debugger where it happened."""
        if not self.is_over(self.update()):
            self._state = "RUNNING"
            try:
                self._outcome_of_task = self._run()
                self._state = "COMPLETED"
            except Exception as error:
                self._state = "FAILED"
                self._failure = last_error("".join(traceback.format_exception_only(error)))
                traceback.print_exc()
                if sys.stdin.isatty():
                    pdb.post_mortem(error.__traceback__)
        if on_update is not None:
            on_update(self.update())
        return Outcome.CANCELLED if self._state == "CANCELLED" else self._outcome_of_task

    def _run(self) -> Outcome:
        former = dict(os.environ)
        os.environ["SUBMITIT_DEBUG_JOB_ID"] = self.job_id
        os.environ.pop("SUBMITIT_EXECUTOR", None)
        try:
            return self._job.submission().result()
        finally:
            os.environ.clear()
            os.environ.update(former)
