"""The training loop, under Submitit, torchrun or alone: `torchrun -m pipeline.train RUN_DIR`.

Where to go on is found on disk, so a preemption, a kill, a lost node and a fresh launch of the same run directory all
take the same way through `train`.
"""

import contextlib
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from pipeline import run_dir as run_directory
from pipeline.checkpoint import CheckpointStore
from pipeline.config import TrainConfig, digest
from pipeline.data import TrainLoader, build_evaluation_loader, build_train_loader
from pipeline.distributed import World, agreed_by_main, join_world, leave_world, sum_over_ranks
from pipeline.ema import Ema
from pipeline.engine import DTYPES, Engine
from pipeline.export import export_weights
from pipeline.metrics import Evaluation, evaluate_batches
from pipeline.mixup import DeviceTransform, Normalise
from pipeline.model import build_model, step_seed
from pipeline.recorder import Recorder, say
from pipeline.saving import Saver
from pipeline.schedule import Schedule, build_schedule, evaluation_is_due
from pipeline.tracking import EndStatus, Tracker


class TrainingError(RuntimeError):
    """A training that cannot go on; the message is for the user."""


class Evaluator:
    """Top-1 of the averaged weights over the validation split, each image counted once over all ranks."""

    def __init__(self, config: TrainConfig, world: World, num_classes: int) -> None:
        """Build a network of its own for the averaged weights."""
        self._config, self._world, self._num_classes = config, world, num_classes
        self._model = build_model(config, num_classes).to(world.device).eval()
        self._normalise = Normalise(config.augment)

    def __call__(self, ema: Ema) -> Evaluation:
        """Evaluate; collective."""
        self._model.load_state_dict(ema.full_state())
        enabled = self._config.precision != "fp32"
        autocast = torch.autocast(self._world.device.type, DTYPES[self._config.precision], enabled=enabled)
        loader = build_evaluation_loader(
            self._config, world_size=self._world.size, rank=self._world.rank, device=self._world.device
        )
        with contextlib.closing(loader):
            counts = evaluate_batches(
                self._model,
                loader,
                num_classes=self._num_classes,
                device=self._world.device,
                autocast=autocast,
                normalise=lambda batch, device: self._normalise(batch.images, torch.device(device)),
            )
        return Evaluation.from_counts(torch.tensor(sum_over_ranks(counts.tolist()), dtype=torch.float64))


class Training:
    """The parts of one attempt, built once; `run` is the loop."""

    def __init__(self, run_dir: Path, world: World, recorder: Recorder, tracker: Tracker | None) -> None:
        """Build the engine and restore the newest sound checkpoint of `run_dir`."""
        self.config = config = run_directory.load(run_dir)
        self.run_dir, self.world, self.recorder, self.tracker = run_dir, world, recorder, tracker
        self._tracked_step = -1
        self.facts: dict[str, Any] = {"config_digest": digest(config), "mlflow_run_id": None}
        probe = self._open_loader(0, 0)
        self.num_samples, self.num_classes = probe.num_samples, probe.num_classes
        self.facts["dataset_digest"] = probe.dataset_digest
        probe.close()
        self.schedule: Schedule = build_schedule(config, self.num_samples)
        torch.manual_seed(config.seed)
        self.engine = Engine(build_model(config, self.num_classes), config, world)
        weights = self.engine.local_weights()
        self.ema = Ema(weights, self.engine.model, config.ema_decay, partitioned=config.zero_stage == 3)
        self.transform = DeviceTransform(config.augment, config.mix, self.num_classes, config.seed)
        self.evaluate = Evaluator(config, world, self.num_classes)
        store = CheckpointStore(run_dir)
        self.saver = Saver(store, self.engine, self.ema, recorder, keep=config.keep_checkpoints, facts=self.facts)

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
        config, recorder, saver, total = self.config, self.recorder, self.saver, self.schedule.total_steps
        step = saver.restore()
        recorder.open(step)
        result: Evaluation | None = None
        loader = self._open_loader(step, total)
        with contextlib.closing(loader):
            began = time.monotonic()
            for batches in loader:
                loss, grad_norm = self.engine.step(
                    ((self.transform(batch, self.world.device)) for batch in batches),
                    lr=self.schedule.lr_at(step),
                    seed=step_seed(config, step, self.world.rank),
                )
                self.ema.update()
                stop, loss_sum, written = sum_over_ranks([float(stop_requested()), loss, saver.status])
                step += 1
                record = self._record(step, loss_sum / self.world.size, grad_norm, time.monotonic() - began, loader)
                self._require_finite(record, loader)
                evaluate = evaluation_is_due(config, step, total, self.num_samples)
                if evaluate:
                    result = self.evaluate(self.ema)
                    record |= {"eval_top1": result.top1, "eval_top5": result.top5, "eval_loss": result.loss}
                    recorder.say(f"step {step}: top-1 {result.top1:.4f}, top-5 {result.top5:.4f}")
                recorder.step(record)
                if step % config.log_every_steps == 0 or step == total:
                    recorder.progress(record, total, self.epoch(step))
                saver.publish_if_written(written)
                if evaluate or step % config.save_every_steps == 0 or stop:
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
            raise TrainingError(f"the last step is computed but could not be saved; see the warnings in {self.run_dir}")
        return step >= total

    def _track(self) -> None:
        """Let MLflow have what a checkpoint covers, and have the next checkpoint name the MLflow run."""
        if self.tracker is not None and self.saver.durable_step != self._tracked_step:
            self._tracked_step = self.saver.durable_step
            self.tracker.durable(self._tracked_step)
            self.facts["mlflow_run_id"] = self.tracker.run_id

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

    def _require_finite(self, record: dict[str, Any], loader: TrainLoader) -> None:
        finite = math.isfinite(record["loss"])
        if finite and (math.isfinite(record["grad_norm"]) or self.config.precision == "fp16"):
            return
        what = "gradient" if finite else "loss"
        raise TrainingError(
            f"step {record['step']}: the {what} is not finite; "
            f"the newest checkpoint is step {self.saver.durable_step}. "
            "A lower --train.optimizer.lr, or --train.optimizer.clip-grad-norm, usually helps"
        )


def _memory_mb(world: World) -> float:
    """Peak memory of this rank, in 10^6 bytes: the GPU's, or the process's where there is none."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _refuse_together(world: World, action: Callable[[], Any]) -> Any:
    """Do `action` on rank 0; if it refuses, every rank raises the same message instead of waiting for rank 0."""
    value, problem = None, None
    if world.is_main:
        try:
            value = action()
        except run_directory.RunDirectoryError as error:
            problem = str(error)
    problem = agreed_by_main(problem)
    if problem is not None:
        raise TrainingError(str(problem))
    return value


class Attempt:
    """One attempt at a run: its ranks, its lock, its records; ends by `close` on rank 0."""

    def __init__(self, run_dir: Path) -> None:
        """Nothing is done before `run`."""
        self._run_dir = run_dir
        self._tracker: Tracker | None = None
        self._lock: IO[str] | None = None
        self._recorder: Recorder | None = None

    def run(self, stop_requested: Callable[[], bool]) -> bool:
        """Train until the end or until asked to stop; return whether the end was reached, exported and registered."""
        world = join_world()
        try:
            self._lock = _refuse_together(world, lambda: run_directory.lock(self._run_dir))
            self._recorder = recorder = Recorder(self._run_dir, world)
            if world.is_main:
                document = run_directory.document(self._run_dir)
                self._tracker = Tracker.start(
                    self._run_dir, document, attempt=recorder.attempt, world_size=world.size, tags={}
                )
            training = Training(self._run_dir, world, recorder, self._tracker)
            if not training.run(stop_requested):
                return False
            export_weights(training.ema, training.config, self._run_dir, world, training.epoch)
        finally:
            leave_world()
        if world.is_main:
            self.close("finished")
            register_or_say_how(self._run_dir)
        return True

    def close(self, outcome: str) -> None:
        """Write down how the attempt ended (the value of a `jobs.Outcome`) and give the MLflow run its status."""
        status: dict[str, EndStatus] = {"finished": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}
        if self._recorder is not None:
            self._recorder.event("end", outcome=outcome)
            self._recorder.close()
            self._recorder = None
        if self._tracker is not None:
            self._tracker.close(status.get(outcome))
            self._tracker = None


def register_or_say_how(run_dir: Path) -> None:
    """Register the exported weights; where the registry does not take them, say how to do it later."""
    from pipeline.register import register

    try:
        version = register(run_dir)
        say(f"registered {version.uri} with the aliases {', '.join(version.aliases)}")
    except Exception as error:  # the training is done and exported: nothing that MLflow raises may undo that
        say(f"warning: the model is trained but not registered ({type(error).__name__}: {error})")
        say(f"register it with: python -m pipeline.register {run_dir}")


def main() -> int:
    """`torchrun -m pipeline.train RUN_DIR`: one attempt in this process."""
    import signal

    from jobs import Outcome
    from pipeline.task import TrainTask

    if len(sys.argv) != 2:
        print("usage: torchrun --nproc-per-node N -m pipeline.train RUN_DIR (a folder that pipeline.launch made)")
        return 2
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda received, _: stop.append(received))
    task = TrainTask(Path(sys.argv[1]))
    outcome = Outcome.FAILED
    try:
        outcome = task(lambda: bool(stop))
    except (TrainingError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
    finally:
        task.ended(outcome)
    return 0 if outcome is Outcome.FINISHED else 1


if __name__ == "__main__":
    sys.exit(main())
