"""The callable that `jobs` runs: one attempt at the run in a run directory. Importing it needs no torch."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import Outcome, StopRequested, job_outcome, logs_folder
from pipeline.run.files import LOGS, durable_step, read_evaluations
from pipeline.weights.card import is_exported

if TYPE_CHECKING:
    from pipeline.train.attempt import Attempt


class TrainTask:
    """Trains the run whose `config.json` is in `run_dir`. It is pickled, so it holds no state of the training."""

    takes_port = True

    # Of the class, because a job that an earlier version has queued holds a task without it.
    _was_called = False

    def __init__(self, run_dir: Path) -> None:
        """Keep the path; the folder is opened when the task runs."""
        self.run_dir = Path(run_dir)
        self._attempt: Attempt | None = None

    def progress(self) -> str:
        """Name of the newest checkpoint; `jobs` counts attempts that leave it unchanged.

        After the end of a training its job may still evaluate.
        """
        evaluated = len(read_evaluations(self.run_dir))
        exported = f" exported, {evaluated} evaluated" if is_exported(self.run_dir) else ""
        return f"step_{max(0, durable_step(self.run_dir)):08d}{exported}"

    def __call__(self, stop_requested: StopRequested) -> Outcome:
        """Train until the end or until asked to stop; all ranks have saved when INTERRUPTED is returned."""
        self._was_called = True
        from pipeline.run.goodput import StartUp

        start_up = StartUp()
        from pipeline.train.attempt import Attempt

        self._attempt = Attempt(self.run_dir, start_up)
        return Outcome.FINISHED if self._attempt.run(stop_requested) else Outcome.INTERRUPTED

    def ended(self, outcome: Outcome) -> None:
        """Record the outcome of the job, give the MLflow run its status, and register a finished model, on rank 0.

        The user's web address is told next, and the mirror gets the time that is left. The ranks have left their
        process group by then, so that nothing that another rank does can end this. A task that ends without having been
        called was given up, since too many attempts made no progress, or is a job of a chain whose run had ended
        before: cancelled, or failed.
        """
        try:
            self._record(outcome)
        finally:
            if outcome in (Outcome.FINISHED, Outcome.FAILED, Outcome.CANCELLED, Outcome.STOPPED):
                from pipeline.run.notify import notify

                was_given_up = outcome is Outcome.FAILED and self._was_given_up()
                notify(self.run_dir, "given up" if was_given_up else outcome.value)
            if self._attempt is not None:
                self._attempt.close_mirror(outcome.value)

    def _record(self, outcome: Outcome) -> None:
        if self._attempt is not None:
            self._attempt.close(outcome.value)
            if outcome is Outcome.FINISHED and self._attempt.is_main:
                from pipeline.train.completion import complete_or_explain

                complete_or_explain(self.run_dir)
        elif not self._was_called:
            # The attempt before may have left the run as one that goes on.
            from pipeline.tracking.settle import settle_after_end

            settle_after_end(self.run_dir, has_failed=outcome is Outcome.FAILED)

    def _was_given_up(self) -> bool:
        """Whether this job has ended because attempts made no progress; `jobs` logs that before it calls `ended`."""
        return job_outcome(logs_folder(self.run_dir / LOGS), os.environ.get("JOB_ID", "")) == "given up"
