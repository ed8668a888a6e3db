"""Exact accuracy: integers that can be summed over batches and over ranks, and fractions made from them once."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.common.errors import InputError

COUNTS = ("correct1", "correct5", "samples", "loss_sum")
"""What the elements of a counts tensor (`[4]`, float64) mean, in order."""


class LabelledBatch(Protocol):
    """What an evaluation reads."""

    @property
    def images(self) -> Tensor:
        """Pixels, uint8 `[N, 3, H, W]`."""
        ...

    @property
    def labels(self) -> Tensor:
        """Classes, int64 `[N]`; a negative label is padding and is not counted."""
        ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Result over a validation split; accuracies are fractions in [0, 1], the loss is the mean cross-entropy."""

    top1: float
    top5: float
    loss: float
    samples: int

    @classmethod
    def from_counts(cls, counts: Tensor) -> Self:
        """From a counts tensor `[4]`, summed over all batches and ranks.

        Raises:
            ValueError: no sample was counted.
        """
        correct1, correct5, samples, loss_sum = counts.tolist()
        if samples < 1:
            raise InputError("nothing was evaluated: the validation split gave no sample")
        return cls(top1=correct1 / samples, top5=correct5 / samples, loss=loss_sum / samples, samples=int(samples))


def ranks_of_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes score above each sample's label, int64 `[N]`; 0 is a correct first guess.

    Among equal scores the lower class index comes first; a label whose score is not a number comes last.

    Args:
        logits: scores `[N, C]`.
        labels: classes `[N]`, all within `[0, C)`.
    """
    scores = logits.float().nan_to_num(nan=-torch.inf)
    own = scores.gather(1, labels[:, None])
    earlier = torch.arange(scores.shape[1], device=scores.device)[None] < labels[:, None]
    above = (scores > own) | ((scores == own) & earlier)
    lost = logits.gather(1, labels[:, None]).isnan()[:, 0]
    return torch.where(lost, scores.shape[1], above.sum(1))


def count_batch(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts `[4]` (float64, see `COUNTS`) of one batch of logits `[N, C]` and labels `[N]`."""
    kept = labels >= 0
    logits, labels = logits[kept].float(), labels[kept]
    ranks = ranks_of_labels(logits, labels)
    loss = F.cross_entropy(logits, labels, reduction="none").double().sum()
    samples = torch.tensor(float(len(labels)), dtype=torch.float64, device=logits.device)
    return torch.stack([(ranks < 1).sum().double(), (ranks < 5).sum().double(), samples, loss])


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

    The integers are exact in float64, so the result does not depend on how batches were split over ranks; sum the
    tensors of all ranks and give them to `Evaluation.from_counts`.

    Args:
        model: from images `[N, 3, H, W]` to logits `[N, num_classes]`; put it into evaluation mode before.
        batches: see `LabelledBatch`; each sample once over all ranks.
        num_classes: of the model; labels beyond it are an error.
        device: where the model lies.
        autocast: entered around each forward; must be reusable, as `torch.autocast(...)` and `nullcontext()` are.
        normalise: from a batch to float32 images on the device.

    Returns:
        Counts `[4]`, float64, on `device`.

    Raises:
        ValueError: a label that the model has no output for.
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
