"""When a training evaluates its averaged weights: at the steps at which it is due, or later if it was asked to stop."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.common.errors import TrainingError, one_line
from pipeline.config.schema import TrainConfig
from pipeline.engine.distributed import World, broadcast_from_main
from pipeline.engine.ema import Ema
from pipeline.run.evaluations import awaiting, write_evaluation
from pipeline.run.recorder import Recorder
from pipeline.tasks import find_task
from pipeline.train.validation import Evaluator


class Evaluation:
    """Evaluates, and says on rank 0 what came out. Every method is collective."""

    def __init__(
        self, config: TrainConfig, world: World, run_dir: Path, recorder: Recorder, evaluator: Evaluator
    ) -> None:
        """Prepare to evaluate.

        Args:
            config: of the training.
            world: this process among the ranks.
            run_dir: of the run.
            recorder: writes what rank 0 records.
            evaluator: computes the scores.
        """
        self._data, self._scores = config.data, find_task(config.task).scores
        self._world, self._run_dir, self._recorder, self._evaluator = world, run_dir, recorder, evaluator

    def at(self, step: int, ema: Ema, stop_requested: Callable[[], bool]) -> dict[str, float] | None:
        """Evaluate the average after `step` finished steps; return what the step's record gets.

        Returns:
            None if a rank was asked to stop meanwhile: the evaluation is made up for later.
        """
        scores = self._evaluate(step, ema, stop_requested)
        return None if scores is None else self._scores.record(scores)

    def make_up(self, step: int, ema: Ema, stop_requested: Callable[[], bool], *, is_last: bool = False) -> bool:
        """Evaluate the restored state if its evaluation was interrupted; return False if asked to stop again.

        Args:
            step: finished steps of that state.
            ema: its averaged weights.
            stop_requested: whether this rank is asked to stop.
            is_last: whether the training ends with that step, so that no later attempt would evaluate it.

        Raises:
            TrainingError: the scores of the last step cannot be written. Nothing is lost: the next attempt finds the
                checkpoint as this one did.
        """
        if not broadcast_from_main(self._world.is_main and step in awaiting(self._run_dir)):
            return True
        began = time.monotonic()
        scores = self._evaluate(step, ema, stop_requested)
        if scores is None:
            return False
        problem = broadcast_from_main(self._write(step, scores, began) if self._world.is_main else None)
        if problem is not None and is_last:
            raise TrainingError(
                f"the training is done, and the scores of its last step {step} could not be written ({problem}): make "
                f"room in {self._run_dir}; the same command evaluates it again, and then registers the model"
            )
        if problem is not None:
            self._recorder.warn(f"the scores of step {step} could not be written ({problem}); it has none")
        self._recorder.lap("evaluation")
        return True

    def _write(self, step: int, scores: Mapping[str, float], began: float) -> str | None:
        """Write the scores of a step whose evaluation `began` then, in monotonic seconds; return why that failed."""
        try:
            write_evaluation(self._run_dir, step, scores, time.monotonic() - began)
        except OSError as error:
            return one_line(error)
        return None

    def _evaluate(self, step: int, ema: Ema, stop_requested: Callable[[], bool]) -> dict[str, float] | None:
        recorder, evaluator, began = self._recorder, self._evaluator, time.monotonic()
        scores = evaluator(ema.full_state(), step, stop_requested)
        end = {} if scores is None else {"end_s": round(evaluator.end_s, 3)}
        recorder.event("evaluate", step=step, seconds=round(time.monotonic() - began, 3), **end)
        if scores is None:
            return None
        recorder.log(f"step {step}: {self._scores.describe(scores)}")
        if evaluator.unwritten is not None:
            recorder.warn(f"the report lacks the classes and pictures of step {step}: {evaluator.unwritten}")
        if evaluator.suspicion is not None:
            recorder.warn(
                f"{evaluator.suspicion}: the labels of {self._data.validation_split} and {self._data.train_split} "
                "hardly mean the same classes; compare the samples of both, and stop this run"
            )
        return scores
