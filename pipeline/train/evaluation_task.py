"""The callable that an evaluation job runs: it evaluates the checkpoints that await it. Importing it needs no torch."""

from pathlib import Path

from jobs import Outcome, StopRequested
from pipeline.run.evaluations import count_tries
from pipeline.run.files import read_evaluations
from pipeline.train.completion import complete, wait_for_end


class EvaluationTask:
    """Evaluates the awaiting checkpoints of the run in `run_dir`, beside its training or after it.

    It is pickled, and finds on disk what is to be done.
    """

    takes_port = True

    def __init__(self, run_dir: Path) -> None:
        """Keep the path; the folder is opened when the task runs."""
        self.run_dir = Path(run_dir)

    def progress(self) -> str:
        """What was evaluated and tried; `jobs` counts attempts that leave it unchanged."""
        return f"{len(read_evaluations(self.run_dir))} evaluated, {count_tries(self.run_dir)} tried"

    def __call__(self, stop_requested: StopRequested) -> Outcome:
        """Evaluate until nothing awaits it, or until asked to stop: the next attempt begins the last one again."""
        from pipeline.train.late_evaluation import evaluate_awaiting

        return Outcome.FINISHED if evaluate_awaiting(self.run_dir, stop_requested) else Outcome.INTERRUPTED

    def ended(self, outcome: Outcome) -> None:
        """Register the model, on rank 0, if this was the last evaluation of a training that has ended."""
        if outcome is Outcome.FINISHED and wait_for_end(self.run_dir):
            complete(self.run_dir)
            from pipeline.mirror import Mirror

            Mirror.complete(self.run_dir)
