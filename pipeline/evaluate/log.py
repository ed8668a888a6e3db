"""Adds an evaluation to the MLflow run that the model comes from: metrics, tables and pictures."""

import csv
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.tracking.client import mlflow_session, refuse_deleted_run

if TYPE_CHECKING:
    from pipeline.evaluate.classes import ClassMap
    from pipeline.evaluate.report import Report
    from pipeline.evaluate.scores import ScoreReport
    from pipeline.weights.load import LoadedModel
    from sharding import Manifest


NAMED_CLASSES = 40
"""Largest number of classes that the confusion picture names."""


def log_report(model: "LoadedModel", report: "Report", matched: "ClassMap", manifest: "Manifest", name: str) -> str:
    """Log metrics `eval/NAME/...` and artifacts `evaluation/NAME/`; return the run's id.

    Raises:
        Exception: any error of MLflow.
    """
    return _log(model, report.scalars(), manifest, name, lambda folder: write_files(folder, report, matched))


def log_scores(model: "LoadedModel", report: "ScoreReport", manifest: "Manifest", name: str) -> str:
    """Log metrics `eval/NAME/...` and artifacts `evaluation/NAME/` of any task; return the run's id.

    Raises:
        Exception: any error of MLflow.
    """

    def write(folder: Path) -> None:
        text = json.dumps(report.as_json(), indent=1, ensure_ascii=False)
        (folder / "report.json").write_text(text, encoding="utf-8")

    return _log(model, report.scalars(), manifest, name, write)


def _log(
    model: "LoadedModel", scalars: dict[str, float], manifest: "Manifest", name: str, write: Callable[[Path], None]
) -> str:
    run_id = model.card.mlflow_run_id
    assert run_id is not None
    with mlflow_session(model.tracking_uri) as client, tempfile.TemporaryDirectory(prefix="evaluation-") as folder:
        from mlflow.entities import Metric

        refuse_deleted_run(client, model.tracking_uri, run_id)
        now = int(1000 * time.time())
        dataset = {"dataset_name": name, "dataset_digest": manifest.digest[:32]}
        metrics = [
            Metric(f"eval/{name}/{key}", value, now, model.card.step, **dataset) for key, value in scalars.items()
        ]
        client.log_batch(run_id, metrics=metrics)
        write(Path(folder))
        client.log_artifacts(run_id, folder, f"evaluation/{name}")
    return run_id


def write_files(folder: Path, report: "Report", matched: "ClassMap") -> None:
    """Write `report.json`, `classes.csv`, `confusions.csv` and `pictures.png` into a folder."""
    (folder / "report.json").write_text(
        json.dumps(report.as_json(matched.classes), indent=1, ensure_ascii=False), encoding="utf-8"
    )
    accuracy = report.class_accuracy
    with open(folder / "classes.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["wnid", "name", "samples", "accuracy"])
        for (wnid, name), row, value in zip(matched.classes, report.confusion, accuracy, strict=True):
            rows.writerow([wnid, name, int(row.sum()), f"{value:.4f}"])
    with open(folder / "confusions.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["label", "guess", "times"])
        for label, guess, times in report.confusions(1000):
            rows.writerow([matched.classes[label][1], matched.classes[guess][1], times])
    draw(folder / "pictures.png", report, matched)


def draw(path: Path, report: "Report", matched: "ClassMap") -> None:
    """Draw confusion, accuracy of the classes and calibration side by side into a PNG file."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.8), layout="constrained")
    axes: Any = figure.subplots(1, 3)
    totals = np.maximum(report.confusion.sum(1, keepdims=True), 1)
    image = axes[0].imshow(report.confusion / totals, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes[0].set(title="Confusion", xlabel="first guess", ylabel="label")
    if len(matched.classes) <= NAMED_CLASSES:
        names = [name.split(",")[0] for _, name in matched.classes]
        axes[0].set_xticks(range(len(names)), names, rotation=90)
        axes[0].set_yticks(range(len(names)), names)
    figure.colorbar(image, ax=axes[0], shrink=0.8, label="share of the label's images")
    accuracy = report.class_accuracy
    axes[1].plot(np.sort(100 * accuracy[~np.isnan(accuracy)]), color="tab:blue")
    axes[1].axhline(100 * report.top1, color="tab:gray", linestyle="--", label=f"top-1 {100 * report.top1:.2f} %")
    axes[1].set(title="Accuracy of each class", xlabel="classes, weakest first", ylabel="%", ylim=(0, 101))
    axes[1].legend(loc="lower right")
    counts, confidence, correct = report.bins
    has_images = counts > 0
    axes[2].plot([0, 100], [0, 100], color="tab:gray", linestyle="--", label="perfect")
    axes[2].plot(
        100 * confidence[has_images] / counts[has_images],
        100 * correct[has_images] / counts[has_images],
        "o-",
        label="measured",
    )
    axes[2].bar((np.arange(len(counts)) + 0.5) * 100 / len(counts), 100 * counts / counts.sum(), width=5, alpha=0.2)
    title = f"Calibration (error {100 * report.calibration_error:.2f} %)"
    axes[2].set(title=title, xlabel="confidence %", ylabel="accuracy %, share of images %")
    axes[2].legend(loc="upper left")
    figure.savefig(path, dpi=110)
