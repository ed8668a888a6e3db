"""What becomes of a training that runs out of memory: which rank it was, with which micro-batch, and what helps."""

from pathlib import Path

import torch

from jobs import node_name
from pipeline.common.errors import TrainingError, one_line
from pipeline.config.checks import micro_batch_candidates
from pipeline.config.schema import AUTO, TrainConfig
from pipeline.engine.distributed import World
from pipeline.engine.trial import refused_allocations
from pipeline.run.config import read_config
from pipeline.run.files import RunDirectoryError, durable_step
from pipeline.run.micro_batch import FoundMicroBatch, read_micro_batch, write_micro_batch
from pipeline.tasks import find_task


class OutOfMemory:
    """Tells an attempt whether an error means that this rank has run out of memory, and what to say then."""

    def __init__(self, run_dir: Path, world: World) -> None:
        """Prepare to explain errors.

        Args:
            run_dir: of the run.
            world: this process among the ranks.
        """
        self._run_dir, self._world = run_dir, world
        self._training: TrainConfig | None = None
        self._refused_before = 0

    def begin(self, config: TrainConfig) -> None:
        """Say that the training begins: the micro-batch of `config` is a number from now on."""
        self._training, self._refused_before = config, refused_allocations(self._world.device)

    def explain(self, error: RuntimeError) -> TrainingError | None:
        """Return what to end the attempt with; None if the error is another one.

        A run without a checkpoint that found its micro-batch by itself keeps the next smaller one.
        """
        if not self._is_out_of_memory(error):
            return None
        given = read_config(self._run_dir).train
        when, flags, keeps = "before the first step", [], ""
        if self._training is not None:
            micro = self._training.micro_batch(self._world.size)
            when = f"with micro-batches of {micro}"
            smaller = [each for each in micro_batch_candidates(given, self._world.size) if each < micro]
            if given.micro_batch_size == AUTO and smaller and self._keep_smaller(smaller[-1]):
                keeps = f"; as it is, it takes micro-batches of {smaller[-1]} when it is launched again"
            elif smaller:
                flags = [f"--train.micro-batch-size {smaller[-1]}"]
            if given.micro_batch_size != AUTO and self._auto_helps():
                flags.append("--train.micro-batch-size auto")
        return TrainingError(
            f"rank {self._world.rank} on {node_name()} has run out of memory {when} ({one_line(error)}); "
            f"{what_helps(given, flags)}{keeps}"
        )

    def _is_out_of_memory(self, error: RuntimeError) -> bool:
        """Where a workspace finds no room, cuDNN tries another algorithm, and raises another error after the last."""
        if isinstance(error, torch.OutOfMemoryError):
            return True
        if self._training is None or refused_allocations(self._world.device) == self._refused_before:
            return False
        return any(word in str(error).lower() for word in ("cudnn", "cublas", "unable to find an engine"))

    def _keep_smaller(self, micro: int) -> bool:
        """Keep a smaller micro-batch for a run without checkpoints; return whether it is kept.

        Ranks that run out of memory together keep the same one: none reads what another has kept.
        """
        if durable_step(self._run_dir) >= 0:
            return False
        place = f"rank {self._world.rank} on {node_name()}, where a larger one ran out of memory in a step"
        try:
            write_micro_batch(
                self._run_dir,
                FoundMicroBatch(micro_batch_size=micro, world_size=self._world.size, decided_by=place),
            )
        except RunDirectoryError:
            return False
        return True

    def _auto_helps(self) -> bool:
        """Whether `auto` would find a micro-batch: one that was kept may be as large as the one that failed."""
        try:
            return read_micro_batch(self._run_dir) is None
        except RunDirectoryError:
            return False


def what_helps(config: TrainConfig, flags: list[str]) -> str:
    """Say what makes a training take less memory: what its run takes, and what makes another training of it.

    Args:
        config: the training as it was given.
        flags: further ones with which the run goes on.
    """
    in_run = list(flags)
    if not config.gradient_checkpointing:
        # The checks refuse it together with these.
        leave = {"--train.no-compile": config.compile, "--train.no-cuda-graphs": config.cuda_graphs}
        in_run.append(" ".join(["--train.gradient-checkpointing", *(flag for flag, is_on in leave.items() if is_on)]))
    another = ["--train.precision bf16"] if config.precision == "fp32" else []
    another += [f"a smaller {find_task(config.task).size_flag}", "a smaller --train.model.name"]
    goes_on = f"the run goes on when it is launched again with one of: {', '.join(in_run)}; or " if in_run else ""
    return f"what helps: {goes_on}with another --run-dir: {', '.join(another)}"
