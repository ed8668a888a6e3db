"""Measures a model by the scores of its task, overall and for each class."""

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.schema import ConfigError
from pipeline.tasks.metric import Scores
from pipeline.tasks.task import Described, Evaluator, Report

if TYPE_CHECKING:
    from torch import nn

    from pipeline.tasks.batch import Batch

LISTED = 150
"""Greatest number of classes that are printed."""


def write_json(folder: Path, report: Report) -> None:
    """Write `report.json` into a folder."""
    text = json.dumps(report.as_json(), indent=1, ensure_ascii=False)
    (folder / "report.json").write_text(text, encoding="utf-8")


def class_rows(names: list[str], columns: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return what is measured of each class as plain values: None for a class that does not occur."""
    return [
        {"name": name, **{key: None if math.isnan(values[k]) else values[k] for key, values in columns.items()}}
        for k, name in enumerate(names)
    ]


@dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """The scores of a task, overall and for each class (`Report`)."""

    scores: Scores
    """Scores of the task."""
    values: dict[str, float]
    """Their values by name."""
    classes: dict[str, list[float]]
    """What is measured of each class, by its name in texts; NaN for a class that does not occur."""
    class_names: list[str]
    """Name of each class."""
    samples: int
    """Number of images."""
    images_per_s: float
    """Throughput, loading included."""
    draw: Callable[[Path], None]
    """Writes the pictures into a folder."""

    def scalars(self) -> dict[str, float]:
        """Return every single number by its name in MLflow and in JSON."""
        return {**self.values, "images_per_s": self.images_per_s, "samples": float(self.samples)}

    def as_json(self) -> dict[str, Any]:
        """Return all results as plain values."""
        return {**self.scalars(), "classes": class_rows(self.class_names, self.classes)}

    def lines(self, title: str, origin: str) -> list[str]:
        """Return the result in lines: the scores, and a row for each class."""
        lines = [f"{title}, {self.samples:,} images", *([f"  {'weights':<18} {origin}"] if origin else [])]
        for score in self.scores.shares:
            if score.name not in self.values:
                continue
            lines.append(f"  {score.label:<18} {100 * self.values[score.name]:.2f} %")
        lines.append(f"  {'throughput':<18} {self.images_per_s:,.1f} images/s, loading included")
        if self.classes:
            width = max(len(name) for name in ("class", *self.class_names[:LISTED]))
            lines.append(f"  {'class':<{width}}  " + "  ".join(f"{name:>9}" for name in self.classes))
            for k, name in enumerate(self.class_names[:LISTED]):
                cells = (
                    f"{'-' if math.isnan(row[k]) else f'{100 * row[k]:.2f} %':>9}" for row in self.classes.values()
                )
                lines.append(f"  {name:<{width}}  " + "  ".join(cells))
        return lines

    def write(self, folder: Path) -> None:
        """Write `report.json`, `classes.csv` and the pictures into a folder."""
        write_json(folder, self)
        with open(folder / "classes.csv", "w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["name", *self.classes])
            for k, name in enumerate(self.class_names):
                rows.writerow([name, *(f"{values[k]:.4f}" for values in self.classes.values())])
        self.draw(folder)


class ScoreMeasurement:
    """Measures with a task's evaluator (`Measurement`)."""

    def __init__(self, scores: Scores, evaluator: Evaluator, model: Described, data: str, names: list[str]) -> None:
        """Take the evaluator of a model and the names of the split's classes.

        Args:
            scores: scores of the task.
            evaluator: has added nothing yet.
            model: the model.
            data: name of the split, for messages.
            names: name of each class of the split.

        Raises:
            ConfigError: the split has other classes than the model.
        """
        own = [name for _, name in model.classes]
        if names != own:
            raise ConfigError(
                f"{data} has {len(names)} classes that are not the {len(own)} of {model.name}: it can be measured only "
                "on the classes that it was trained on"
            )
        self._scores, self._evaluator, self._names, self._samples = scores, evaluator, names, 0

    def add(self, network: "nn.Module", batch: "Batch") -> None:
        """Evaluate a batch."""
        self._evaluator.add(network, batch)
        self._samples += len(batch.indices)

    def result(self, seconds: float) -> ScoreReport:
        """Return scores and classes."""
        sums = self._evaluator.sums()
        return ScoreReport(
            scores=self._scores,
            values=self._evaluator.scores(sums),
            classes=self._evaluator.classes(sums),
            class_names=self._names,
            samples=self._samples,
            images_per_s=self._samples / seconds,
            draw=lambda folder: self._evaluator.draw(folder, self._names),
        )
