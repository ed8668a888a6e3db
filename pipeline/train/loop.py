"""The training loop, under Submitit, torchrun or alone: `torchrun -m pipeline.train RUN_DIR`.

Where to go on is found on disk, so a preemption, a kill, a lost node and a fresh launch of the same run directory all
take the same way through `train`.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.checkpoint.saver import Saver
from pipeline.checkpoint.store import CheckpointStore
from pipeline.common.atomic import write_text
from pipeline.common.errors import TrainingError
from pipeline.config.schema import ConfigError
from pipeline.config.serialise import digest
from pipeline.data.audit import open_audit
from pipeline.data.batch import Batch
from pipeline.data.device import DeviceTransform
from pipeline.data.loader import TrainLoader, build_train_loader
from pipeline.data.split import open_split
from pipeline.engine.distributed import World, agreed_by_main, everyones, sum_over_ranks
from pipeline.engine.ema import Ema
from pipeline.engine.engine import Engine
from pipeline.evaluate.accuracy import Evaluation
from pipeline.order.draws import step_seed
from pipeline.run import directory as run_directory
from pipeline.run.recorder import Recorder
from pipeline.tracking.tracker import Tracker
from pipeline.train.model import build_model
from pipeline.train.non_finite import SKIPPED, NotFiniteError, read_skipped
from pipeline.train.schedule import Schedule, build_schedule, evaluation_is_due
from pipeline.train.validation import Evaluator
from pipeline.weights.load import initialise


class Training:
    """The parts of one attempt, built once; `run` is the loop."""

    def __init__(self, run_dir: Path, world: World, recorder: Recorder, tracker: Tracker | None) -> None:
        """Build the engine and restore the newest sound checkpoint of `run_dir`."""
        self.config = config = run_directory.load(run_dir)
        if config.cuda_graphs and world.device.type != "cuda":
            raise TrainingError("--train.cuda-graphs needs GPUs, and this training runs on CPUs: leave it out")
        self.run_dir, self.world, self.recorder, self.tracker = run_dir, world, recorder, tracker
        self._tracked_step = -1
        manifest = open_split(config.data.shards, config.data.train_split, config.data).manifest
        self.num_samples, self.num_classes = manifest.num_samples, len(manifest.classes)
        self.dataset_digest = manifest.digest
        began_with = run_directory.document(run_dir).get("dataset", {}).get("digest", self.dataset_digest)
        if self.dataset_digest != began_with:
            raise TrainingError(
                f"the shards in {config.data.shards} were packed anew since this run began (digest "
                f"{self.dataset_digest[:12]}, then {began_with[:12]}): put the former ones back, or start another run"
            )
        recorder.lap("data")
        self.schedule: Schedule = build_schedule(config, self.num_samples)
        torch.manual_seed(config.seed)
        model = build_model(config, self.num_classes)
        # What one rank sees of a shared file system another may not see yet: rank 0 decides.
        self._is_new = bool(agreed_by_main(not CheckpointStore(run_dir).steps()))
        if config.initialise_from is not None and self._is_new:
            self._initialise(model, config.initialise_from)
        self.engine = Engine(model, config, world)
        weights = self.engine.local_weights()
        self.ema = Ema(weights, self.engine.network, config.ema_decay, partitioned=config.zero_stage == 3)
        self.transform = DeviceTransform(config.augment, config.mix, self.num_classes, config.seed)
        self.evaluate = Evaluator(config, world, self.num_classes)
        store = CheckpointStore(run_dir)
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

    def _initialise(self, model: torch.nn.Module, source: str) -> None:
        """Rank 0 fetches the weights that a new run starts from; all ranks get them, or all end with its reason."""
        said, problem = "", None
        if self.world.is_main:
            try:
                said = initialise(model, source)
            except ConfigError as error:
                problem = str(error)
        problem = agreed_by_main(problem)
        if problem is not None:
            raise TrainingError(str(problem))
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)
        self.recorder.say(said)

    def _open_loader(self, start_step: int, total_steps: int) -> TrainLoader:
        world = self.world
        return build_train_loader(
            self.config,
            world_size=world.size,
            rank=world.rank,
            start_step=start_step,
            total_steps=total_steps,
            device=world.device,
        )

    def run(self, stop_requested: Callable[[], bool]) -> bool:
        """Train to the end or until asked to stop; return whether the end was reached. Everything is saved by then."""
        try:
            while True:
                try:
                    return self._run_from_checkpoint(stop_requested)
                except NotFiniteError as problem:
                    self._skip_or_stop(problem)
        finally:
            self.engine.close()

    def _run_from_checkpoint(self, stop_requested: Callable[[], bool]) -> bool:
        config, recorder, saver, total = self.config, self.recorder, self.saver, self.schedule.total_steps
        step = saver.restore()
        recorder.open(step)
        if step == 0 and config.initialise_from is not None and not self._is_new:
            raise TrainingError(
                f"no checkpoint in {self.run_dir / 'checkpoints'} is sound, so the run would have to begin again: "
                f"remove that folder to begin from {config.initialise_from} once more"
            )
        recorder.lap("checkpoint")
        skipped = agreed_by_main(read_skipped(self.run_dir))
        assert isinstance(skipped, set)
        result: Evaluation | None = None
        loader = self._open_loader(step, total)
        audit = open_audit(config, self.run_dir, self.world.rank, start_step=step, keys=loader.keys)
        with contextlib.closing(loader):
            began = time.monotonic()
            for batches in loader:
                seen: list[Batch] = []
                loss, grad_norm = self.engine.step(
                    self._prepared(batches, seen),
                    lr=self.schedule.lr_at(step),
                    seed=step_seed(config, step, self.world.rank),
                    update=step not in skipped,
                )
                self.ema.update()
                stop, loss_sum, written = sum_over_ranks([float(stop_requested()), loss, saver.status])
                record = self._record(step + 1, loss_sum / self.world.size, grad_norm, time.monotonic() - began, loader)
                if step in skipped:
                    record |= {"loss": None, "grad_norm": None, "skipped": True}
                else:
                    self._require_finite(record, loss, seen, loader)
                for batch in seen:
                    audit.add(batch)
                step += 1
                evaluate = evaluation_is_due(config, step, total, self.num_samples)
                if evaluate:
                    result = self._evaluate(step)
                    record |= {"eval_top1": result.top1, "eval_top5": result.top5, "eval_loss": result.loss}
                recorder.step(record)
                if step % config.log_every_steps == 0 or step == total:
                    recorder.progress(record, total, self.epoch(step))
                saver.publish_if_written(written)
                if evaluate or saver.is_due(step) or stop:
                    audit.flush()
                    saver.start(step, result.top1 if evaluate and result else None)
                self._track()
                if stop and step < total:
                    break
                began = time.monotonic()
        saver.finish()
        self._track()
        if step < total:
            recorder.say(f"asked to stop: saved step {saver.durable_step} of {total}")
        elif saver.durable_step < total:
            raise TrainingError(
                f"the last step is computed but could not be saved ({saver.problem}): make room there; the same "
                f"command goes on from step {saver.durable_step}"
            )
        return step >= total

    def _prepared(self, batches: Iterable[Batch], seen: list[Batch]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in batches:
            seen.append(batch)
            yield self.transform(batch, self.world.device)

    def _evaluate(self, step: int) -> Evaluation:
        began = time.monotonic()
        result = self.evaluate(self.ema)
        self.recorder.event("evaluate", step=step, seconds=round(time.monotonic() - began, 3))
        self.recorder.say(f"step {step}: top-1 {result.top1:.4f}, top-5 {result.top5:.4f}")
        return result

    def _facts(self) -> dict[str, Any]:
        return {
            "config_digest": digest(self.config),
            "dataset_digest": self.dataset_digest,
            "mlflow_run_id": self.tracker.run_id if self.tracker is not None else None,
        }

    def _track(self) -> None:
        """Let MLflow have what a checkpoint covers."""
        if self.tracker is not None and self.saver.durable_step != self._tracked_step:
            self._tracked_step = self.saver.durable_step
            self.tracker.durable(self._tracked_step)

    def epoch(self, step: int) -> float:
        """Passes over the training split after `step` finished steps."""
        return step * self.config.global_batch_size / self.num_samples

    def _record(self, step: int, loss: float, grad_norm: float, seconds: float, loader: TrainLoader) -> dict[str, Any]:
        record: dict[str, Any] = {
            "step": step,
            "time": time.time(),
            "loss": loss,
            "lr": self.schedule.lr_at(step - 1),
            "grad_norm": grad_norm,
            "images_per_s": self.config.global_batch_size / seconds,
            "step_s": seconds,
            "data_wait": min(1.0, loader.data_wait_s / seconds),
            "memory_mb": _memory_mb(self.world),
        }
        if self.config.precision == "fp16":
            record["loss_scale"] = self.engine.loss_scale
        return record

    def _require_finite(self, record: dict[str, Any], loss: float, seen: list[Batch], loader: TrainLoader) -> None:
        """Raise `NotFiniteError` on every rank if the loss or the gradient of this step is not finite on any."""
        is_loss = not math.isfinite(record["loss"])
        if not is_loss and (math.isfinite(record["grad_norm"]) or self.config.precision == "fp16"):
            return
        mine = None
        if not math.isfinite(loss) or not is_loss:
            mine = [key for batch in seen for key in loader.keys(batch.indices)]
        culprits = [
            f"rank {rank} ({', '.join(map(str, keys[:8]))}{', …' if len(keys) > 8 else ''})"
            for rank, keys in enumerate(everyones(mine))
            if isinstance(keys, list)
        ]
        what = "loss" if is_loss else "gradient"
        raise NotFiniteError(
            record["step"], f"step {record['step']}: the {what} is not finite; samples of {'; '.join(culprits)}"
        )

    def _skip_or_stop(self, problem: "NotFiniteError") -> None:
        """Arrange for the batch to be skipped after going back to the last checkpoint, or raise what ends the run."""
        config, saver = self.config, self.saver
        skipped = sorted({*read_skipped(self.run_dir), problem.step - 1})
        hint = (
            f"the newest checkpoint is step {saver.durable_step}. A lower --train.optimizer.lr or "
            "--train.optimizer.clip-grad-norm usually helps; --train.on-non-finite skip leaves the batch out"
        )
        if config.on_non_finite == "stop":
            raise TrainingError(f"{problem}; {hint}")
        if len(skipped) > config.max_skipped_batches:
            raise TrainingError(f"{problem}; {config.max_skipped_batches} batches were skipped before; {hint}")
        self.recorder.warn(f"{problem}; going back to step {saver.durable_step} to skip this batch")
        saver.finish()
        if not saver.durable_step:
            raise TrainingError(f"{problem}; there is no checkpoint to go back to")
        if self.world.is_main:
            write_text(self.run_dir / SKIPPED, json.dumps(skipped) + "\n", durable=True)
        agreed_by_main(None)


def _memory_mb(world: World) -> float:
    """Peak memory of this rank, in 10^6 bytes: the GPU's, or the process's where there is none."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
