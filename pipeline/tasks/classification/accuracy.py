"""Exact top-1 and top-5: counts that can be summed over batches and ranks, divided once at the end."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.common.errors import InputError
from pipeline.config.schema import AugmentConfig
from pipeline.tasks.batch import Batch
from pipeline.tasks.normalise import Normalise

COUNTS = ("correct1", "correct5", "samples", "loss_sum")
"""Elements of a counts tensor, float64 `[4]`: correct first guesses, labels among the first five guesses, images, and
the sum of the cross-entropies. The first three are integers, which float64 sums exactly."""


FAR_BELOW_CHANCE = 1e-6
"""Probability below which so few correct guesses are no accident."""


class LabelledBatch(Protocol):
    """A batch as `evaluate_batches` reads it."""

    @property
    def images(self) -> Tensor:
        """Pixels, uint8 `[N, 3, H, W]`."""
        ...

    @property
    def labels(self) -> Tensor:
        """Labels, int64 `[N]`; a sample with a negative label is padding and is not counted."""
        ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Accuracy of a model on a split."""

    top1: float
    """Share of correct first guesses, in [0, 1]."""
    top5: float
    """Share of images whose label is among the first five guesses, in [0, 1]."""
    loss: float
    """Mean cross-entropy."""
    samples: int
    """Number of images."""

    def scores(self) -> dict[str, float]:
        """Return the scores of the task by name."""
        return {"top1": self.top1, "top5": self.top5, "loss": self.loss}

    @classmethod
    def from_counts(cls, counts: Tensor) -> Self:
        """Divide a counts tensor `[4]` (see `COUNTS`) that was summed over all batches and ranks.

        Raises:
            InputError: no image was counted.
        """
        correct1, correct5, samples, loss_sum = counts.tolist()
        if samples < 1:
            raise InputError("nothing was evaluated: the validation split gave no sample")
        return cls(top1=correct1 / samples, top5=correct5 / samples, loss=loss_sum / samples, samples=int(samples))


def is_far_below_chance(evaluation: Evaluation, num_classes: int) -> bool:
    """Whether a top-1 is far below that of random guesses, 1 / `num_classes`.

    Even an untrained network is right that often, so fewer correct guesses mean that the labels of the evaluated split
    and of the training split do not mean the same classes. Exact: the binomial probability of so few correct guesses.
    """
    chance, samples = 1 / num_classes, evaluation.samples
    correct = round(evaluation.top1 * samples)
    if num_classes < 2 or correct >= samples * chance:
        return False
    choose = math.lgamma(samples + 1)
    terms = (
        choose
        - math.lgamma(k + 1)
        - math.lgamma(samples - k + 1)
        + k * math.log(chance)
        + (samples - k) * math.log1p(-chance)
        for k in range(correct + 1)
    )
    return math.fsum(map(math.exp, terms)) < FAR_BELOW_CHANCE


def ranks_of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the classes that score above each sample's label: int64 `[N]`; 0 is a correct first guess.

    Among equal scores the lower class index comes first. A label whose score is NaN comes last.

    Args:
        logits: scores `[N, C]`.
        labels: labels `[N]`, all within `[0, C)`.
    """
    scores = logits.float().nan_to_num(nan=-torch.inf)
    label_scores = scores.gather(1, labels[:, None])
    lower_index = torch.arange(scores.shape[1], device=scores.device)[None] < labels[:, None]
    above = (scores > label_scores) | ((scores == label_scores) & lower_index)
    is_nan = logits.gather(1, labels[:, None]).isnan()[:, 0]
    return torch.where(is_nan, scores.shape[1], above.sum(1))


def count_batch(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the counts (float64 `[4]`, see `COUNTS`) of a batch of logits `[N, C]` and labels `[N]`."""
    is_sample = labels >= 0
    logits, labels = logits[is_sample].float(), labels[is_sample]
    ranks = ranks_of_labels(logits, labels)
    loss = F.cross_entropy(logits, labels, reduction="none").double().sum()
    samples = torch.tensor(float(len(labels)), dtype=torch.float64, device=logits.device)
    return torch.stack([(ranks < 1).sum().double(), (ranks < 5).sum().double(), samples, loss])


class AccuracyEvaluator:
    """Evaluates a network on batches (`pipeline.tasks.task.Evaluator`)."""

    is_gathered = False

    def __init__(self, augment: AugmentConfig, num_classes: int, device: torch.device) -> None:
        """Begin with no sample counted."""
        self._normalise, self._num_classes, self._device = Normalise(augment), num_classes, device
        self._counts = torch.zeros(len(COUNTS), dtype=torch.float64, device=device)

    def add(self, network: Callable[[Tensor], Tensor], batch: Batch) -> None:
        """Count the correct guesses of a batch.

        Raises:
            InputError: the network has no output for a label.
        """
        labels = batch.labels.to(self._device, non_blocking=True)
        if len(batch.labels) and int(batch.labels.max()) >= self._num_classes:
            raise InputError(
                f"the validation split has label {int(batch.labels.max())}, the model {self._num_classes} classes"
            )
        self._counts += count_batch(network(self._normalise(batch.images, self._device)), labels)

    def sums(self) -> list[float]:
        """Return the counts of this rank (see `COUNTS`)."""
        return self._counts.tolist()

    def scores(self, sums: list[float]) -> dict[str, float]:
        """Divide the counts of all ranks."""
        return Evaluation.from_counts(torch.tensor(sums, dtype=torch.float64)).scores()

    def suspicion(self, sums: list[float]) -> str | None:
        """Return that the accuracy is far below chance, if it is."""
        evaluation = Evaluation.from_counts(torch.tensor(sums, dtype=torch.float64))
        if not is_far_below_chance(evaluation, self._num_classes):
            return None
        return f"TOP-1 {evaluation.top1:.4f} IS FAR BELOW CHANCE ({1 / self._num_classes:.4f})"

    def classes(self, sums: list[float]) -> dict[str, list[float]]:
        """Return nothing: the counts are not kept by class."""
        return {}

    def draw(self, folder: Path, names: list[str]) -> None:
        """Draw nothing."""


@torch.no_grad()
def evaluate_batches(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[LabelledBatch],
    *,
    num_classes: int,
    device: torch.device | str,
    autocast: AbstractContextManager[Any],
    normalise: Callable[[Any, torch.device | str], Tensor],
) -> Tensor:
    """Sum the counts of a model over batches.

    To evaluate on several ranks, sum the tensors of all ranks and give the sum to `Evaluation.from_counts`. The
    accuracies do not depend on how the samples were split over ranks and batches.

    Args:
        model: maps images `[N, 3, H, W]` to logits `[N, num_classes]`, in evaluation mode.
        batches: batches that hold each sample once over all ranks.
        num_classes: number of the model's outputs.
        device: device that the model is on.
        autocast: context entered around each forward; must be reusable, as `torch.autocast(...)` and `nullcontext()`.
        normalise: maps a batch to float32 images on the device.

    Returns:
        Counts `[4]`, float64, on `device`.

    Raises:
        InputError: the model has no output for a label.
    """
    counts = torch.zeros(len(COUNTS), dtype=torch.float64, device=device)
    for batch in batches:
        labels = batch.labels.to(device, non_blocking=True)
        if len(batch.labels) and int(batch.labels.max()) >= num_classes:
            raise InputError(
                f"the validation split has label {int(batch.labels.max())}, the model {num_classes} classes"
            )
        with autocast:
            logits = model(normalise(batch, device))
        counts += count_batch(logits, labels)
    return counts
