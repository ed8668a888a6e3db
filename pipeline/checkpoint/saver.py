"""When a training saves and restores: all ranks write in the background, rank 0 publishes, all ranks restore."""

import time
from collections.abc import Callable
from typing import Any

from pipeline.checkpoint.rank_file import RankWriter
from pipeline.checkpoint.state import load_state, state_summary, state_tensors
from pipeline.checkpoint.store import Checkpoint, CheckpointStore
from pipeline.engine.distributed import broadcast_from_main, gather_objects, sum_over_ranks
from pipeline.engine.ema import Ema
from pipeline.engine.engine import Engine
from pipeline.run.evaluations import AWAITS
from pipeline.run.recorder import Recorder
from pipeline.tasks import Metric


class Saver:
    """Saves and restores the state of a training. Every method but `status` is collective."""

    def __init__(
        self,
        store: CheckpointStore,
        engine: Engine,
        ema: Ema,
        recorder: Recorder,
        *,
        every: int,
        keep: int,
        facts: Callable[[], dict[str, Any]],
    ) -> None:
        """Prepare to save.

        Args:
            store: folder of the run's checkpoints.
            engine: holds the weights and the optimizer state.
            ema: holds the average of the weights.
            recorder: records every save.
            every: steps between two saves; a failed save is retried after a tenth of them.
            keep: number of the newest checkpoints to keep; the best one is kept besides.
            facts: returns further entries of a manifest (digests of config and data, MLflow run) when it is published.
        """
        self._store, self._engine, self._ema, self._recorder = store, engine, ema, recorder
        self._world = engine.world
        self._every, self._keep = every, keep
        self._facts = facts
        self._writer: RankWriter | None = None
        self._current: tuple[int, float, dict[str, Any]] | None = None
        self.durable_step = 0
        """Step of the newest published checkpoint of this attempt, or the one it started from."""
        self.problem = ""
        """Why the last save failed; empty if it succeeded."""
        self._failed_step: int | None = None
        self._owes_evaluation = False

    def restore(self) -> int:
        """Load the newest valid checkpoint, if there is one; return the number of finished steps."""
        chosen: Checkpoint | None = None
        if self._world.is_main:
            self._store.remove_leftovers()
            chosen = self._store.newest_valid(self._recorder.warn)
        checkpoint = broadcast_from_main(chosen)
        if checkpoint is None:
            return 0
        assert isinstance(checkpoint, Checkpoint)
        load_state(checkpoint, self._engine, self._ema)
        self.durable_step = checkpoint.step
        manifest = checkpoint.manifest
        now = f"{self._world.size} ranks, ZeRO stage {self._engine.stage}"
        before = f"{manifest['world_size']} ranks, ZeRO stage {manifest['zero_stage']}"
        converted = "" if now == before else f", converted from {before} to {now}"
        self._recorder.log(f"resumed after step {checkpoint.step} from {checkpoint.path}{converted}")
        return checkpoint.step

    def is_due(self, step: int) -> bool:
        """Whether to save the state after `step` finished steps: at every interval, and sooner after a failed save."""
        retry = self._failed_step is not None and step >= self._failed_step + max(1, self._every // 10)
        return retry or step % self._every == 0

    def start(self, step: int, metric: Metric | None, *, awaits_evaluation: bool = False) -> None:
        """Copy the state after `step` finished steps, and write it in the background.

        The method first waits for the previous save.

        Args:
            step: number of finished steps.
            metric: primary metric of this state, by which the best checkpoint is kept; None: it was not evaluated.
            awaits_evaluation: whether an evaluation of this state is due, and made later. If it cannot be saved, the
                next state that is saved awaits it in its place.
        """
        self.finish()
        awaits_evaluation = awaits_evaluation or self._owes_evaluation
        began = time.monotonic()
        if self._writer is None:
            self._writer = RankWriter(state_tensors(self._engine, self._ema), self._world.rank)
        self._writer.start(self._store.partial(step))
        measured = {"metric": None} if metric is None else metric.stored()
        place = {"world_size": self._world.size, AWAITS: awaits_evaluation, "time": time.time()}
        summary = state_summary(self._engine) | measured | place
        self._current = (step, began, summary)
        self._recorder.event("save", step=step, stall_s=round(time.monotonic() - began, 4))

    @property
    def status(self) -> float:
        """1 once this rank has written its part of a started save, or failed; else 0. The loop adds up all ranks'."""
        return 1.0 if self._writer is not None and self._writer.done else 0.0

    def publish_if_written(self, finished_ranks: float) -> None:
        """Publish the started save once `finished_ranks`, the sum of all ranks' `status`, is the number of ranks."""
        if self._current is not None and finished_ranks >= self._world.size:
            self.finish()

    def finish(self) -> None:
        """Wait until all ranks have written the started save, and publish it; if one failed, warn and drop it."""
        if self._current is None or self._writer is None:
            return
        step, started, summary = self._current
        began = time.monotonic()
        error = self._writer.finish()
        [failures] = sum_over_ranks([0.0 if error is None else 1.0])
        self._current = None
        problem = None
        if self._world.is_main:
            try:
                if not failures:
                    # No later attempt computes these steps again, so their records must be as durable as their result.
                    self._recorder.sync()
                    self._store.publish(step, summary | self._facts())
                    for late in self._store.retain(self._keep):
                        self._recorder.warn(
                            f"step {late} is not evaluated: the evaluations are behind, and only {self._keep} "
                            "checkpoints await theirs (--train.keep-checkpoints)"
                        )
            except OSError as publish_error:
                problem = str(publish_error)
        if error is not None:
            problem = f"rank {self._world.rank}: {error}"
        problems = [str(p) for p in gather_objects(problem) if p]
        self._failed_step = step if problems else None
        self._owes_evaluation = bool(problems and summary[AWAITS])
        self.problem = problems[0] if problems else ""
        if problems:
            if self._world.is_main:
                self._store.remove_leftovers()
            self._recorder.warn(
                f"the checkpoint of step {step} could not be written ({problems[0]}); "
                f"training goes on and retries soon; the newest checkpoint is step {self.durable_step}"
            )
        else:
            self.durable_step = step
            now = time.monotonic()
            self._recorder.event("saved", step=step, stall_s=round(now - began, 4), seconds=round(now - started, 3))
