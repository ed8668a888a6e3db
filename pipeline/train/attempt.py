"""One attempt at a run: from the process group to the exported weights."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from jobs import node_name
from pipeline.common.errors import TrainingError
from pipeline.config.schema import TrainConfig
from pipeline.engine.collectives import CollectiveTimer
from pipeline.engine.deepspeed_imports import import_deepspeed
from pipeline.engine.distributed import gather_objects, join_world, leave_world, silent_ranks
from pipeline.mirror.handle import Mirror
from pipeline.run import directory as run_directory
from pipeline.run.config import read_config
from pipeline.run.goodput import StartUp
from pipeline.run.recorder import Recorder
from pipeline.run.system import SystemMonitor
from pipeline.tracking.tracker import EndStatus, Tracker
from pipeline.train.evaluation_process import EvaluationProcess
from pipeline.train.loop import Training
from pipeline.train.memory_snapshot import open_memory_snapshot
from pipeline.train.out_of_memory import OutOfMemory
from pipeline.train.preflight import preflight, should_run
from pipeline.train.rank_0 import on_rank_0
from pipeline.weights.export import export_weights

FORMER_ATTEMPT_S = 90.0
"""How long an attempt waits for the former one, which may still run on a node that Slurm has lost, to leave."""


class Attempt:
    """One attempt at a run, in one rank; on rank 0 `close` ends it."""

    def __init__(self, run_dir: Path, start_up: StartUp) -> None:
        """Prepare the attempt; `run` does the work.

        Args:
            run_dir: of the run.
            start_up: the stopwatch of this process's start, started before this module was imported.
        """
        self._run_dir, self._start_up = run_dir, start_up
        self._tracker: Tracker | None = None
        self._mirror: Mirror | None = None
        self._monitor: SystemMonitor | None = None
        self._lock: IO[str] | None = None
        self._recorder: Recorder | None = None
        self._evaluations: EvaluationProcess | None = None
        self._closed_as: str | None = None
        self._end_began = 0.0
        """When `close` was called, in seconds of the monotonic clock."""
        self.is_main = False
        """Whether this is rank 0; known once the ranks have joined."""

    def run(self, stop_requested: Callable[[], bool]) -> bool:
        """Train to the end or until asked to stop; return whether the end was reached.

        At the end all ranks export the averaged weights.

        Raises:
            TrainingError: the training cannot go on; the message says why and what to do.
        """
        config = self._read_config()
        self._start_up.lap("imports")
        world = join_world(config.collective_timeout_s)
        self.is_main = world.is_main
        self._start_up.lap("ranks")
        import_deepspeed()
        self._start_up.lap("imports")
        out_of_memory = OutOfMemory(self._run_dir, world)
        try:
            # The other ranks wait for rank 0 in a collective.
            patience_s = min(FORMER_ATTEMPT_S, config.collective_timeout_s / 2)
            self._lock = on_rank_0(world, lambda: run_directory.lock(self._run_dir, patience_s))
            self._recorder = recorder = Recorder(
                self._run_dir,
                is_main=world.is_main,
                world_size=world.size,
                device=world.device.type,
                start_up=self._start_up,
            )
            evaluation = read_config(self._run_dir).evaluation
            cores = _cores_of_main_node() if (evaluation or {}).get("in_allocation") else ()
            if world.is_main:
                tags = {"job_id": os.environ["JOB_ID"]} if "JOB_ID" in os.environ else {}
                self._mirror = Mirror.start(self._run_dir)
                self._tracker = Tracker.start(self._run_dir, attempt=recorder.attempt, world_size=world.size, tags=tags)
            elif world.local_rank == 0:
                # The tracker's worker monitors the node of rank 0.
                self._monitor = SystemMonitor.start(self._run_dir, int(os.environ.get("GROUP_RANK", world.rank)))
            recorder.lap("tracking")
            if should_run(config, world) and not preflight(self._run_dir, config, world, recorder):
                return False
            recorder.lap("preflight")
            if world.is_main and evaluation is not None:
                # Not before: evaluations would burden the node that is measured.
                self._evaluations = EvaluationProcess(self._run_dir, cores)
            memory = open_memory_snapshot(self._run_dir, world, recorder, wanted=config.memory_snapshot)
            with CollectiveTimer() as timer, contextlib.closing(memory):
                training = Training(self._run_dir, world, recorder, self._tracker, timer, memory)
                out_of_memory.begin(training.config)
                if not training.run(stop_requested):
                    return False
                export_weights(training.ema, training.config, self._run_dir, world, training.epoch)
        except RuntimeError as error:
            explained = out_of_memory.explain(error)
            if explained is not None:
                raise explained from error
            silent = silent_ranks(error)
            if not silent:
                raise
            names = ", ".join(map(str, silent))
            raise TrainingError(
                f"rank {names} of {world.size} hangs or was lost: a collective of the other ranks failed ({error}); "
                "see the log of that rank for what it did last; a new attempt goes on from the newest checkpoint"
            ) from error
        finally:
            if self._monitor is not None:
                self._monitor.stop()
            leave_world()
        return True

    def _read_config(self) -> TrainConfig:
        """Read the configuration before the ranks join.

        Raises:
            TrainingError: this rank does not see the run; the message names its host.
        """
        try:
            return read_config(self._run_dir).train
        except run_directory.RunDirectoryError as error:
            raise TrainingError(f"{error} (rank {os.environ.get('RANK', '0')} on {node_name()})") from error

    def close(self, outcome: str) -> None:
        """Record how the attempt ended (a value of `jobs.Outcome`), and set the MLflow run's status.

        Where checkpoints are evaluated beside a training, its end waits until a job has the last ones, or for them.
        A no-op on ranks other than 0. An interrupted attempt may be closed again, as cancelled: a user has cancelled
        the job before it was requeued.
        """
        self._end_began = time.monotonic()
        status: dict[str, EndStatus] = {
            "finished": "FINISHED",
            "failed": "FAILED",
            "cancelled": "KILLED",
            "stopped": "KILLED",
        }
        if self._recorder is not None:
            self._recorder.end(outcome)
        if self._mirror is not None and outcome != "finished":
            # Slurm may leave only seconds; the mirror takes them together with the tracking server.
            self._mirror.hasten()
        if self._evaluations is not None and outcome != "finished":
            self._evaluations.hasten()
        if self._tracker is not None:
            hint = f"launch again with --run-dir {self._run_dir}: no job is left" if outcome == "stopped" else ""
            self._tracker.close(status.get(outcome), hint=hint)
            self._tracker = None
        elif self._closed_as == "interrupted":
            from pipeline.tracking.settle import settle_after_contact

            settle_after_contact(self._run_dir)
        self._closed_as = outcome
        if self._evaluations is not None:
            self._evaluations.close(finished=outcome == "finished")

    def close_mirror(self, outcome: str) -> None:
        """Let the mirror take what is left, within the time that the end of an attempt has. A no-op but on rank 0.

        Called after `close`, and after a finished run was registered.
        """
        if self._mirror is not None:
            is_finished = outcome == "finished"
            self._mirror.close(outcome, time.monotonic() if is_finished else self._end_began)
            self._mirror = None


def _cores_of_main_node() -> set[int]:
    """Return the cores that the ranks of rank 0's node may use together. Collective."""
    found = gather_objects((os.environ.get("GROUP_RANK"), os.sched_getaffinity(0)))
    nodes = [(node, cores) for node, cores in found]  # pyright: ignore[reportGeneralTypeIssues]
    return set().union(*(cores for node, cores in nodes if node == nodes[0][0]))
