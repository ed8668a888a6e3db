"""The result of `pipeline.evaluate`: accuracy overall and for each class, confusion and calibration."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.tasks.classification.accuracy import Evaluation


@dataclass(frozen=True, kw_only=True)
class Report(Evaluation):
    """An evaluation with everything measured beside its accuracy; `C` is the number of classes that take part."""

    calibration_error: float
    """Expected calibration error: mean gap between confidence and accuracy over equal bins of confidence."""
    images_per_s: float
    """Throughput, loading included."""
    confusion: np.ndarray
    """Number of images by label (row) and first guess (column): int64 `[C, C]`."""
    bins: np.ndarray
    """Sums of each confidence bin: images, confidences, correct first guesses: float64 `[3, BINS]`."""

    @property
    def class_accuracy(self) -> np.ndarray:
        """Share of correct first guesses of each class: float64 `[C]`, NaN for a class without images."""
        totals = self.confusion.sum(1)
        return np.divide(np.diag(self.confusion), totals, out=np.full(len(totals), np.nan), where=totals > 0)

    @property
    def mean_class_accuracy(self) -> float:
        """Mean accuracy of the classes that have images."""
        return float(np.nanmean(self.class_accuracy))

    def scalars(self) -> dict[str, float]:
        """Return every single number by its name in MLflow and in JSON."""
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
        """Return the `count` most frequent mistakes as (label, first guess, number of images), most frequent first."""
        wrong = self.confusion.copy()
        np.fill_diagonal(wrong, 0)
        order = np.argsort(wrong, axis=None, kind="stable")[::-1][:count]
        pairs = [(int(i // len(wrong)), int(i % len(wrong))) for i in order]
        return [(label, guess, int(wrong[label, guess])) for label, guess in pairs if wrong[label, guess]]

    def as_json(self, classes: list[tuple[str, str]]) -> dict[str, Any]:
        """Return all results as plain values; `classes` holds (WordNet id, name) of each of the `C` classes."""
        accuracy = self.class_accuracy
        return {
            **self.scalars(),
            "classes": [
                {"wnid": wnid, "name": name, "samples": int(row.sum()), "accuracy": None if np.isnan(a) else float(a)}
                for (wnid, name), row, a in zip(classes, self.confusion, accuracy, strict=True)
            ],
            "calibration_bins": self.bins.tolist(),
        }
