"""What an evaluation measures beside top-1: per class, confusion, calibration."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.common.errors import InputError
from pipeline.config.schema import AugmentConfig, DataConfig
from pipeline.evaluate.accuracy import ranks_of_labels
from pipeline.evaluate.classes import ClassMap, match_classes

if TYPE_CHECKING:
    from pipeline.weights.load import LoadedModel
    from sharding import Manifest


def evaluate(
    model: "LoadedModel",
    shards: str,
    split: str = "validation",
    *,
    subset: bool = False,
    precision: Literal["fp32", "bf16"] = "fp32",
    workers: int = 2,
) -> "tuple[Report, ClassMap, Manifest]":
    """Measure a model on every image of a split; how far it is goes to stderr.

    Raises:
        ConfigError: the classes do not fit, or there cannot be so many workers.
        sharding.ShardingError: the shards are not there or not whole.
    """
    import torch

    from pipeline.config.checks import check_ranges
    from pipeline.config.serialise import flatten, to_dict
    from pipeline.data.device import Normalise
    from pipeline.data.loader import build_evaluation_loader
    from pipeline.evaluate.progress import shown
    from sharding import load_manifest

    manifest = load_manifest(shards, split)
    matched = match_classes(model.card, manifest, subset=subset)
    settings = model.card.preprocessing
    data = DataConfig(shards=shards, validation_split=split, workers=workers)
    augment = AugmentConfig(evaluation_crop=settings.evaluation_crop, mean=settings.mean, std=settings.std)
    image_size = model.card.image_size
    check_ranges(flatten({"data": to_dict(data), "augment": to_dict(augment), "model": {"image_size": image_size}}))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, normalise = model.network.to(device), Normalise(augment)
    outputs = torch.tensor(matched.outputs, device=device)
    labels = torch.tensor(matched.labels, device=device)
    measured = Measurement(len(matched.outputs), device)
    began = time.monotonic()
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        build_evaluation_loader(data, augment, image_size, world_size=1, rank=0, device=device) as loader,
    ):
        for batch in shown(loader, manifest.num_samples):
            logits = network(normalise(batch.images, device))
            measured.add(logits.index_select(1, outputs), labels[batch.labels.to(device)])
    report = measured.result(time.monotonic() - began)
    return report, matched, manifest


BINS = 15


class Measurement:
    """Sums over batches; read by `result` at the end. Everything stays on the model's device until then."""

    def __init__(self, num_classes: int, device: torch.device | str) -> None:
        self._confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)
        self._correct5 = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self._bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._classes = num_classes

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            logits: scores `[N, C]`.
            labels: classes `[N]`, int64, within `[0, C)`.
        """
        logits = logits.float()
        ranks = ranks_of_labels(logits, labels)
        confidence, guesses = logits.softmax(1).max(1)
        self._confusion += torch.bincount(labels * self._classes + guesses, minlength=self._classes**2)
        self._correct5 += torch.bincount(labels[ranks < 5], minlength=self._classes)
        self._loss += F.cross_entropy(logits, labels, reduction="none").double().sum()
        index = (confidence * BINS).long().clamp(0, BINS - 1)
        for row, values in enumerate((torch.ones_like(confidence), confidence, (guesses == labels).float())):
            self._bins[row].index_add_(0, index, values.double())

    def result(self, seconds: float) -> "Report":
        """What was measured; `seconds` is the time that the whole took.

        Raises:
            ValueError: nothing was counted.
        """
        confusion = self._confusion.view(self._classes, self._classes).cpu().numpy()
        per_class = confusion.sum(1)
        samples = int(per_class.sum())
        if samples == 0:
            raise InputError("nothing was evaluated: the split gave no sample")
        counts, confidence, correct = self._bins.cpu().numpy()
        return Report(
            samples=samples,
            top1=float(np.trace(confusion) / samples),
            top5=float(self._correct5.sum().item() / samples),
            loss=float(self._loss.item() / samples),
            calibration_error=float(np.abs(confidence - correct).sum() / samples),
            images_per_s=samples / seconds,
            confusion=confusion,
            bins=np.stack([counts, confidence, correct]),
        )


@dataclass(frozen=True, kw_only=True)
class Report:
    """An evaluation's result; accuracies are fractions in [0, 1]."""

    samples: int
    top1: float
    top5: float
    loss: float
    """Mean cross-entropy."""
    calibration_error: float
    """Expected calibration error: mean gap of confidence and accuracy over 15 equal bins of confidence."""
    images_per_s: float
    """From shards to answer, loading included."""
    confusion: np.ndarray
    """Counts `[C, C]` by label (row) and first guess (column), int64."""
    bins: np.ndarray
    """Sums `[3, 15]` by confidence: samples, confidence, correct first guesses."""

    @property
    def class_accuracy(self) -> np.ndarray:
        """Share of right first guesses of each class `[C]`; NaN for a class without samples."""
        totals = self.confusion.sum(1)
        return np.divide(np.diag(self.confusion), totals, out=np.full(len(totals), np.nan), where=totals > 0)

    @property
    def mean_class_accuracy(self) -> float:
        """Mean of the per-class accuracies over the classes that have samples."""
        return float(np.nanmean(self.class_accuracy))

    def scalars(self) -> dict[str, float]:
        """Every single number, by name."""
        return {
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "mean_class_accuracy": self.mean_class_accuracy,
            "calibration_error": self.calibration_error,
            "images_per_s": self.images_per_s,
            "samples": float(self.samples),
        }

    def confusions(self, count: int) -> list[tuple[int, int, int]]:
        """The most frequent mistakes: (label, guess, how often), worst first."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(wrong, axis=None, kind="stable")[::-1][:count]
        pairs = [(int(i // len(wrong)), int(i % len(wrong))) for i in order]
        return [(label, guess, int(wrong[label, guess])) for label, guess in pairs if wrong[label, guess]]

    def as_json(self, classes: list[tuple[str, str]]) -> dict[str, Any]:
        """Everything as plain values, with the names (WordNet id, words) of the classes `[C]`."""
        accuracy = self.class_accuracy
        return {
            **self.scalars(),
            "classes": [
                {"wnid": wnid, "name": name, "samples": int(row.sum()), "accuracy": None if np.isnan(a) else float(a)}
                for (wnid, name), row, a in zip(classes, self.confusion, accuracy, strict=True)
            ],
            "calibration_bins": self.bins.tolist(),
        }
