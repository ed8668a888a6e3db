"""A loss or a gradient that is not finite: name the samples, then stop, or go back and skip the batch."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.common.atomic import write_text
from pipeline.common.errors import TrainingError
from pipeline.config.schema import TrainConfig
from pipeline.engine.distributed import gather_objects

SKIPPED = "skipped.json"
"""In the run's folder: batches, numbered from 0, that are read and not trained on (`--train.on-non-finite skip`)."""


class NotFiniteError(TrainingError):
    """A step whose loss or gradient is not finite; raised on every rank.

    Attributes:
        step: number of the step, counted from 1.
    """

    def __init__(self, step: int, message: str) -> None:
        """Keep the number of the step."""
        super().__init__(message)
        self.step = step

    def __reduce__(self) -> tuple[type["NotFiniteError"], tuple[int, str]]:
        return type(self), (self.step, str(self))


def require_finite(record: dict[str, Any], own_loss: float, precision: str, keys: Callable[[], list[str]]) -> None:
    """Raise the same error on every rank if the loss or the gradient of a step is not finite on any rank.

    Under fp16 a gradient that is not finite is an overflow, which the loss scaler handles.

    Args:
        record: of the step; its `loss` and `grad_norm` are of all ranks.
        own_loss: loss of this rank.
        precision: of the training.
        keys: keys of the samples that this rank has read in the step.

    Raises:
        NotFiniteError: with the step, and with the ranks and samples that may have caused it.
    """
    is_loss = not math.isfinite(record["loss"])
    if not is_loss and (math.isfinite(record["grad_norm"]) or precision == "fp16"):
        return
    suspects = keys() if not is_loss or not math.isfinite(own_loss) else None
    named = [
        f"rank {rank} ({', '.join(rank_keys[:8])}{', …' if len(rank_keys) > 8 else ''})"
        for rank, rank_keys in enumerate(gather_objects(suspects))
        if isinstance(rank_keys, list)
    ]
    what = "loss" if is_loss else "gradient"
    raise NotFiniteError(
        record["step"], f"step {record['step']}: the {what} is not finite; samples of {'; '.join(named)}"
    )


def read_skipped(run_dir: Path) -> set[int]:
    """Numbers of the batches that a run leaves out, counted from 0.

    Raises:
        TrainingError: the file is damaged. Without it the run would train on batches that it had left out.
    """
    path = run_dir / SKIPPED
    if not path.exists():
        return set()
    try:
        skipped = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        skipped = None
    if not isinstance(skipped, list) or not all(isinstance(batch, int) for batch in skipped):
        raise TrainingError(f"{path} is damaged: it is a JSON list of the numbers of skipped batches, such as [17]")
    return set(skipped)


def skip_or_stop(problem: NotFiniteError, config: TrainConfig, skipped: set[int], durable_step: int) -> set[int]:
    """The batches to skip when the training goes back to its newest checkpoint after a step that was not finite.

    Args:
        problem: the step that was not finite.
        config: of the training; it says whether batches may be skipped, and how many.
        skipped: batches that are skipped already.
        durable_step: step of the newest checkpoint, 0 without one.

    Raises:
        TrainingError: the training ends here, with what to do.
    """
    hint = (
        f"the newest checkpoint is step {durable_step}. A lower --train.optimizer.lr or "
        "--train.optimizer.clip-grad-norm usually helps; --train.on-non-finite skip leaves the batch out"
    )
    more = skipped | {problem.step - 1}
    if config.on_non_finite == "stop":
        raise TrainingError(f"{problem}; {hint}")
    if len(more) > config.max_skipped_batches:
        raise TrainingError(f"{problem}; {config.max_skipped_batches} batches were skipped before; {hint}")
    if not durable_step:
        raise TrainingError(f"{problem}; there is no checkpoint to go back to")
    return more


def write_skipped(run_dir: Path, skipped: set[int]) -> None:
    """Keep the numbers of the batches that a run leaves out; rank 0 writes them before the training goes back."""
    write_text(run_dir / SKIPPED, json.dumps(sorted(skipped)) + "\n", durable=True)
