"""Checkpoints of a training under way: all ranks write behind the steps, rank 0 publishes, everybody restores."""

import time
from collections.abc import Callable
from typing import Any

from pipeline.checkpoint.state import load_state, state_summary, state_tensors
from pipeline.checkpoint.store import Checkpoint, CheckpointStore
from pipeline.checkpoint.writer import RankWriter
from pipeline.engine.distributed import agreed_by_main, everyones, sum_over_ranks
from pipeline.engine.ema import Ema
from pipeline.engine.engine import Engine
from pipeline.run.recorder import Recorder


class Saver:
    """Every method but `status` is collective: all ranks call it at the same step."""

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
        """Save the state of `engine` and `ema` to `store`, keeping the newest `keep` and the best.

        Args:
            store: where.
            engine: what is trained.
            ema: its average.
            recorder: is told of every save.
            every: steps between two saves; a save that failed is tried again after a tenth of them.
            keep: number of newest checkpoints that stay.
            facts: further entries of each manifest (digests of config and data, MLflow run), asked for at publication.
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
        """Why the last save failed; empty where it did not."""
        self._failed_step: int | None = None

    def restore(self) -> int:
        """Load the newest sound checkpoint, if there is one; return the number of finished steps."""
        chosen: Checkpoint | None = None
        if self._world.is_main:
            self._store.remove_leftovers()
            chosen = self._store.newest_sound(self._recorder.warn)
        checkpoint = agreed_by_main(chosen)
        if checkpoint is None:
            return 0
        assert isinstance(checkpoint, Checkpoint)
        load_state(checkpoint, self._engine, self._ema)
        self.durable_step = checkpoint.step
        then = checkpoint.manifest
        now = f"{self._world.size} ranks, ZeRO stage {self._engine.stage}"
        before = f"{then['world_size']} ranks, ZeRO stage {then['zero_stage']}"
        converted = "" if now == before else f", written by {before}, taken up by {now}"
        self._recorder.say(f"resumed after step {checkpoint.step} from {checkpoint.path}{converted}")
        return checkpoint.step

    def is_due(self, step: int) -> bool:
        """Whether the state after `step` finished steps is to be saved: every interval, and sooner after a failure."""
        retry = self._failed_step is not None and step >= self._failed_step + max(1, self._every // 10)
        return retry or step % self._every == 0

    def start(self, step: int, top1: float | None) -> None:
        """Snapshot the state after `step` finished steps and write it behind the training.

        A former save that is still being written is waited for.
        """
        self.finish()
        began = time.monotonic()
        if self._writer is None:
            self._writer = RankWriter(state_tensors(self._engine, self._ema), self._world.rank)
        self._writer.start(self._store.aside(step))
        summary = state_summary(self._engine) | {"world_size": self._world.size, "top1": top1, "time": time.time()}
        self._current = (step, began, summary)
        self._recorder.event("save", step=step, stall_s=round(time.monotonic() - began, 4))

    @property
    def status(self) -> float:
        """1 where this rank's part of a started save is written (or failed), for the ranks to add up."""
        return 1.0 if self._writer is not None and self._writer.done else 0.0

    def publish_if_written(self, finished_ranks: float) -> None:
        """Publish the started save once `finished_ranks`, the sum of all `status`, says that every part is there."""
        if self._current is not None and finished_ranks >= self._world.size:
            self.finish()

    def finish(self) -> None:
        """Wait for a started save on all ranks and publish it; a failed one is dropped with a warning."""
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
                    self._store.retain(self._keep)
            except OSError as publish_error:
                problem = str(publish_error)
        if error is not None:
            problem = f"rank {self._world.rank}: {error}"
        problems = [str(p) for p in everyones(problem) if p]
        self._failed_step = step if problems else None
        self.problem = problems[0] if problems else ""
        if problems:
            if self._world.is_main:
                self._store.remove_leftovers()
            self._recorder.warn(
                f"the checkpoint of step {step} could not be written ({problems[0]}); "
                f"training goes on and tries again soon, the newest is step {self.durable_step}"
            )
        else:
            self.durable_step = step
            now = time.monotonic()
            self._recorder.event("saved", step=step, stall_s=round(now - began, 4), seconds=round(now - started, 3))
