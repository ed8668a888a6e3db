"""A job that runs on this machine: under a controller, or inside this process."""

import contextlib
import os
import pdb
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs import attempt_log
from jobs.attempt_log import last_outcome
from jobs.failure import last_error, tail
from jobs.submission import FINAL_STATES, Submission, Update
from jobs.task import Outcome


class LocalSubmission(Submission):
    """Processes on this machine, under a controller that this process has started."""

    cluster = "local"

    def __init__(self, folder: Path, job_id: str, world_size: int, process: "subprocess.Popen[Any]") -> None:
        super().__init__(folder, job_id, world_size)
        self._process = process

    def update(self) -> Update:
        """Read the state from the controller's process."""
        restarts = sum(event.outcome == "requeued" for event in attempt_log.read(self.folder, self.job_id))
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
        """Ask the ranks to save and stop, since they do not go on without this launcher."""
        self.cancel()
        return f"asked the {self.world_size} processes to save and stop; Ctrl-C again ends them at once"

    def _after_detach(self, poll_s: float, on_update: Callable[[Update], None] | None) -> Outcome:
        try:
            self._follow(poll_s, on_update)
        except KeyboardInterrupt:
            self._signal(signal.SIGQUIT)
            self._process.wait()
        finished = last_outcome(self.folder, self.job_id) == "finished"
        return Outcome.FINISHED if finished else Outcome.INTERRUPTED

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def failure(self) -> str:
        """Why the job failed: what the ranks reported, or else the end of the controller's log."""
        reported = super().failure()
        if reported or self._process.poll() in (None, 0):
            return reported
        log_file = self.folder / f"{self.job_id}_controller.log"
        return f"job {self.job_id} failed: {tail(log_file) or 'its controller was killed'}\n  logs: {self.folder}"


class DebugSubmission(Submission):
    """A job that runs inside this process, when `wait` is called."""

    cluster = "debug"

    def __init__(self, folder: Path, job_id: str, job: Any) -> None:
        super().__init__(folder, job_id, 1)
        self._job = job
        self._state = "PENDING"
        self._failure = ""
        self._task_outcome = Outcome.FAILED

    def update(self) -> Update:
        """Return the state; nothing is started."""
        return Update(state=self._state)

    def is_over(self, update: Update) -> bool:
        """Whether the job has run."""
        return update.state in FINAL_STATES

    def cancel(self) -> None:
        """Mark the job as cancelled, so that `wait` does not run it."""
        self._state = "CANCELLED"

    def detach(self) -> str:
        """Do nothing: the job ran in this process, which was interrupted."""
        return "interrupted"

    def failure(self) -> str:
        """The error of the task, or ""."""
        return self._failure

    def wait(self, poll_s: float = 2.0, on_update: Callable[[Update], None] | None = None) -> Outcome:
        """Run the task now. After an error, open the debugger where it happened if stdin is a terminal."""
        if not self.is_over(self.update()):
            self._state = "RUNNING"
            try:
                self._task_outcome = self._run()
                self._state = "COMPLETED"
            except Exception as error:
                self._state = "FAILED"
                self._failure = last_error("".join(traceback.format_exception_only(error)))
                traceback.print_exc()
                if sys.stdin.isatty():
                    pdb.post_mortem(error.__traceback__)
        if on_update is not None:
            on_update(self.update())
        return Outcome.CANCELLED if self._state == "CANCELLED" else self._task_outcome

    def _run(self) -> Outcome:
        previous = dict(os.environ)
        os.environ["SUBMITIT_DEBUG_JOB_ID"] = self.job_id
        os.environ.pop("SUBMITIT_EXECUTOR", None)
        try:
            return self._job.submission().result()
        finally:
            os.environ.clear()
            os.environ.update(previous)
