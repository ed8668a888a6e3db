"""The training loop: the parts of one attempt, and the loop over the steps.

Where to go on is found on disk, so a preemption, a kill, a lost node and a fresh launch of the same run directory all
take the same way.
"""

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline.checkpoint.saver import Saver
from pipeline.checkpoint.store import CheckpointStore
from pipeline.common.errors import TrainingError
from pipeline.config.checks import check
from pipeline.config.serialise import digest
from pipeline.data.audit import open_audit
from pipeline.data.loader import StepBatches, TrainLoader, build_train_loader
from pipeline.engine.collectives import CollectiveTimer
from pipeline.engine.distributed import World, broadcast_from_main, sum_over_ranks
from pipeline.engine.ema import Ema
from pipeline.engine.engine import Engine
from pipeline.order.draws import step_seed
from pipeline.run.config import read_config
from pipeline.run.evaluations import drop_evaluations
from pipeline.run.lost_checkpoints import describe_lost_checkpoints
from pipeline.run.recorder import Recorder
from pipeline.tracking.tracker import Tracker
from pipeline.train.evaluation import Evaluation
from pipeline.train.hang_watch import HangWatch
from pipeline.train.kernels import check_kernels
from pipeline.train.memory_snapshot import MemorySnapshot, NoSnapshot
from pipeline.train.micro_batch import settle_micro_batch
from pipeline.train.model import build_model, initialise_on_all_ranks
from pipeline.train.non_finite import NotFiniteError, read_skipped, require_finite, skip_or_stop, write_skipped
from pipeline.train.rank_times import RankTimes
from pipeline.train.record import step_record
from pipeline.train.schedule import build_schedule, evaluation_is_due
from pipeline.train.teacher import build_transform
from pipeline.train.trace import open_trace
from pipeline.train.validation import Evaluator
from sharding import load_manifest


class Training:
    """The parts of one attempt, built once; `run` is the loop."""

    def __init__(
        self,
        run_dir: Path,
        world: World,
        recorder: Recorder,
        tracker: Tracker | None,
        timer: CollectiveTimer,
        memory: MemorySnapshot | NoSnapshot,
    ) -> None:
        """Build the network, the engine and what surrounds them; no checkpoint is loaded yet.

        Args:
            run_dir: of the run; its `config.json` says what is trained.
            world: this process among the ranks.
            recorder: writes what rank 0 records.
            tracker: tells MLflow's worker how far the checkpoints reach; None but on rank 0.
            timer: measures how long this rank waits for the others.
            memory: records the GPU's memory; the caller closes it, also if this fails, as it does without memory.

        Raises:
            ConfigError: the configuration does not fit this number of ranks.
            TrainingError: the shards or the teacher are not those that the run began with, there are no such weights to
                start from, or CUDA graphs are asked for without GPUs.
        """
        # torchrun may start another number of ranks than the launch had checked, and config.json can be edited.
        config = check(read_config(run_dir).train, world.size)
        if config.cuda_graphs and world.device.type != "cuda":
            raise TrainingError("--train.cuda-graphs needs GPUs, and this training runs on CPUs: leave it out")
        self.memory = memory
        self.task = read_config(run_dir).task
        self.run_dir, self.world, self.recorder, self.tracker = run_dir, world, recorder, tracker
        self._tracked_step = -1
        manifest = load_manifest(config.data.shards, config.data.train_split, config.data.name)
        self.num_samples, self.num_classes = manifest.num_samples, len(manifest.classes)
        self.dataset_digest = manifest.digest
        began_with = read_config(run_dir).training_digest or self.dataset_digest
        if self.dataset_digest != began_with:
            raise TrainingError(
                f"the shards in {config.data.shards} were packed anew since this run began (digest "
                f"{self.dataset_digest[:12]}, then {began_with[:12]}): put the previous ones back, or start another run"
            )
        recorder.lap("data")
        self.schedule = build_schedule(config, self.num_samples)
        torch.manual_seed(config.seed)
        model = build_model(config, self.num_classes)
        store = CheckpointStore(run_dir)
        # What one rank sees of a shared file system another may not see yet: rank 0 decides.
        is_new = bool(broadcast_from_main(not store.steps()))
        if config.initialise_from is not None and is_new:
            recorder.log(initialise_on_all_ranks(model, config, world))
        check_kernels(config, world, run_dir, recorder)
        self.transform = build_transform(config, [entry.wnid for entry in manifest.classes], run_dir, world, recorder)
        config = settle_micro_batch(config, model, self.transform, self.num_classes, run_dir, world, recorder)
        self.config = config
        self.engine = Engine(model, config, world)
        weights = self.engine.local_weights()
        self.ema = Ema(weights, self.engine.network, config.ema_decay, partitioned=config.zero_stage == 3)
        self.times = RankTimes(world, timer, recorder, config.slow_factor)
        entered, timeout_s = lambda: timer.entered, config.collective_timeout_s
        self.hang_watch = HangWatch(world, recorder, self.times.hosts, entered, timeout_s)
        names = [entry.name for entry in manifest.classes]
        evaluator = Evaluator(config, world, run_dir, names, self.hang_watch.alive)
        self.evaluation = Evaluation(config, world, run_dir, recorder, evaluator)
        self.evaluates_beside = read_config(run_dir).evaluation is not None
        self.saver = Saver(
            store,
            self.engine,
            self.ema,
            recorder,
            every=config.save_every_steps,
            keep=config.keep_checkpoints,
            facts=self._facts,
        )
        recorder.lap("network")

    def run(self, stop_requested: Callable[[], bool]) -> bool:
        """Train to the end or until asked to stop; return whether the end was reached. Everything is saved by then."""
        try:
            with self.hang_watch:
                while True:
                    try:
                        return self._run_from_checkpoint(stop_requested)
                    except NotFiniteError as problem:
                        self._go_back(problem)
        finally:
            # Before the engine gives its memory back.
            self.memory.close()
            self.engine.close()

    def _run_from_checkpoint(self, stop_requested: Callable[[], bool]) -> bool:
        """Train from the newest checkpoint; return whether the end was reached."""
        config, recorder, saver, total = self.config, self.recorder, self.saver, self.schedule.total_steps
        step, interrupted = self._restore(), False
        self.memory.start(step)
        if not self.evaluates_beside:
            is_made_up = self.evaluation.make_up(step, self.ema, stop_requested, is_last=step == total)
            if not is_made_up:
                return False
        skipped = self._skipped()
        trace = open_trace(self.run_dir, self.world.rank, step, config.profile, recorder)
        with contextlib.closing(self._open_loader(step)) as loader, contextlib.closing(trace):
            audit = open_audit(config, self.run_dir, self.world.rank, start_step=step, keys=loader.keys)
            began = self.times.begin()
            for batches in loader:
                loss, grad_norm = self.engine.step(
                    (self.transform(batch, self.world.device) for batch in batches),
                    lr=self.schedule.lr_at(step),
                    seed=step_seed(config, step, self.world.rank),
                    update=step not in skipped,
                )
                self.ema.update()
                stop, loss_sum, written, *places = sum_over_ranks(
                    [float(stop_requested()), loss, saver.status, *self.times.to_send(step + 1)]
                )
                seconds = time.monotonic() - began
                record = step_record(
                    config,
                    self.world,
                    step=step + 1,
                    loss=loss_sum / self.world.size,
                    lr=self.schedule.lr_at(step),
                    grad_norm=grad_norm,
                    loss_scale=self.engine.scaler.scale,
                    seconds=seconds,
                    data_wait_s=loader.data_wait_s,
                    others_wait_s=self.times.end(seconds, loader.data_wait_s),
                )
                record |= self.times.received(step + 1, places)
                if step in skipped:
                    record |= {"loss": None, "grad_norm": None, "skipped": True}
                else:
                    require_finite(record, loss, config.precision, partial(_keys, loader, batches))
                for batch in batches.read:
                    audit.add(batch)
                step += 1
                self.hang_watch.step(step)
                evaluate = evaluation_is_due(config, step, total, self.num_samples)
                if evaluate and not self.evaluates_beside:
                    scores = None if stop else self.evaluation.at(step, self.ema, stop_requested)
                    record |= scores or {}
                    stop = interrupted = scores is None
                recorder.step(record)
                if step % config.log_every_steps == 0 or step == total:
                    recorder.progress(record, total, self.epoch(step))
                saver.publish_if_written(written)
                if evaluate or saver.is_due(step) or stop:
                    audit.flush()
                    awaits = interrupted or (evaluate and self.evaluates_beside)
                    saver.start(step, self.task.scores.metric_of_record(record), awaits_evaluation=awaits)
                self._track()
                trace.step()
                self.memory.step()
                if interrupted or (stop and step < total):
                    break
                began = self.times.begin()
        return self._finish(step, interrupted=interrupted)

    def _restore(self) -> int:
        """Load the newest valid checkpoint; return the number of finished steps."""
        step = self.saver.restore()
        if step == 0:
            # Before the journal is opened, which would drop the records of the steps that were lost.
            lost = broadcast_from_main(describe_lost_checkpoints(self.run_dir, is_verified=True))
            if lost is not None:
                raise TrainingError(str(lost))
        self.recorder.open(step)
        if self.world.is_main:
            drop_evaluations(self.run_dir, after=step)
        self.recorder.lap("checkpoint")
        return step

    def _finish(self, step: int, *, interrupted: bool) -> bool:
        """Publish the last checkpoint; return whether the end was reached.

        Args:
            step: finished steps.
            interrupted: whether the training was asked to stop before or while it evaluated this step.

        Raises:
            TrainingError: the last step could not be saved.
        """
        total, saver = self.schedule.total_steps, self.saver
        saver.finish()
        self._track()
        if step < total or interrupted:
            rest = "; its evaluation is made up for when the training goes on" if interrupted else ""
            self.recorder.log(f"asked to stop: saved step {saver.durable_step} of {total}{rest}")
        elif saver.durable_step < total:
            raise TrainingError(
                f"the last step is computed but could not be saved ({saver.problem}): make room there; the same "
                f"command goes on from step {saver.durable_step}"
            )
        return step >= total and not interrupted

    def _open_loader(self, start_step: int) -> TrainLoader:
        return build_train_loader(
            self.config,
            world_size=self.world.size,
            rank=self.world.rank,
            start_step=start_step,
            total_steps=self.schedule.total_steps,
            device=self.world.device,
        )

    def _skipped(self) -> set[int]:
        """The batches that are left out, as rank 0 reads them."""
        skipped = broadcast_from_main(read_skipped(self.run_dir))
        assert isinstance(skipped, set)
        return skipped

    def _go_back(self, problem: NotFiniteError) -> None:
        """Have the batch skipped when the training goes on from the newest checkpoint, or raise what ends the run."""
        self.saver.finish()
        skipped = skip_or_stop(problem, self.config, self._skipped(), self.saver.durable_step)
        self.recorder.warn(f"{problem}; going back to step {self.saver.durable_step} to skip this batch")
        if self.world.is_main:
            write_skipped(self.run_dir, skipped)
        broadcast_from_main(None)

    def _track(self) -> None:
        """Let MLflow have what a checkpoint covers."""
        if self.tracker is not None and self.saver.durable_step != self._tracked_step:
            self._tracked_step = self.saver.durable_step
            self.tracker.durable(self._tracked_step)

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint's manifest says beside the state."""
        return {
            "config_digest": digest(self.config),
            "dataset_digest": self.dataset_digest,
            "mlflow_run_id": self.tracker.run_id if self.tracker is not None else None,
        }

    def epoch(self, step: int) -> float:
        """Passes over the training split after `step` finished steps."""
        return step * self.config.global_batch_size / self.num_samples


def _keys(loader: TrainLoader, batches: StepBatches) -> list[str]:
    """Keys of the samples that this rank has read in a step."""
    return [key for batch in batches.read for key in loader.keys(batch.indices)]
