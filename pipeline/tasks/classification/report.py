"""A measured classifier: accuracy overall and for each class, confusion and calibration."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.tasks.classification.accuracy import Evaluation
from pipeline.tasks.classification.classes import ClassMap
from pipeline.tasks.classification.pictures import draw
from pipeline.tasks.report import write_json

LISTED = 5
"""Number of weakest classes, and of most frequent mistakes, that are printed."""


@dataclass(frozen=True, kw_only=True)
class ClassifierReport(Evaluation):
    """An evaluation with everything measured beside its accuracy; `C` is the number of classes that take part."""

    calibration_error: float
    """Expected calibration error: mean gap between confidence and accuracy over equal bins of confidence."""
    images_per_s: float
    """Throughput, loading included."""
    confusion: np.ndarray
    """Number of images by label (row) and first guess (column): int64 `[C, C]`."""
    matched: ClassMap
    """The classes that take part."""
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

    def as_json(self) -> dict[str, Any]:
        """Return all results as plain values."""
        accuracy = self.class_accuracy
        return {
            **self.scalars(),
            "classes": [
                {"wnid": wnid, "name": name, "samples": int(row.sum()), "accuracy": None if np.isnan(a) else float(a)}
                for (wnid, name), row, a in zip(self.matched.classes, self.confusion, accuracy, strict=True)
            ],
            "calibration_bins": self.bins.tolist(),
        }

    def lines(self, title: str, origin: str) -> list[str]:
        """Return the result in a few lines."""
        matched, accuracy = self.matched, self.class_accuracy
        among = "" if len(matched.outputs) == matched.num_outputs else f" among {len(matched.outputs)} classes"
        lines = [
            f"{title}, {self.samples:,} images{among}",
            *([f"  weights            {origin}"] if origin else []),
            f"  top-1              {100 * self.top1:.2f} %",
            f"  top-5              {100 * self.top5:.2f} %",
            f"  per class          {100 * self.mean_class_accuracy:.2f} % on average",
            f"  calibration error  {100 * self.calibration_error:.2f} %",
            f"  loss               {self.loss:.4f}",
            f"  throughput         {self.images_per_s:,.0f} images/s, loading included",
        ]
        weakest = sorted((k for k in range(len(accuracy)) if accuracy[k] < 1), key=lambda k: accuracy[k])[:LISTED]
        if weakest:
            entries = [f"{matched.short_name(k)} {100 * accuracy[k]:.0f} %" for k in weakest]
            lines.append("  weakest classes    " + ", ".join(entries))
        mistakes = self.confusions(LISTED)
        if mistakes:
            entries = [
                f"{matched.short_name(label)} for {matched.short_name(guess)} ({count})"
                for label, guess, count in mistakes
            ]
            lines.append("  mistaken most      " + ", ".join(entries))
        return lines

    def write(self, folder: Path) -> None:
        """Write `report.json`, `classes.csv`, `confusions.csv` and `pictures.png` into a folder."""
        write_json(folder, self)
        with open(folder / "classes.csv", "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["wnid", "name", "samples", "accuracy"])
            for (wnid, name), row, value in zip(self.matched.classes, self.confusion, self.class_accuracy, strict=True):
                rows.writerow([wnid, name, int(row.sum()), f"{value:.4f}"])
        with open(folder / "confusions.csv", "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["label", "guess", "times"])
            for label, guess, times in self.confusions(1000):
                rows.writerow([self.matched.classes[label][1], self.matched.classes[guess][1], times])
        draw(
            folder / "pictures.png",
            [name.split(",")[0] for _, name in self.matched.classes],
            confusion=self.confusion,
            class_accuracy=self.class_accuracy,
            bins=self.bins,
            top1=self.top1,
            calibration_error=self.calibration_error,
        )
