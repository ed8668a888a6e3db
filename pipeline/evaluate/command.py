"""The command `python -m pipeline.evaluate MODEL --shards U`: measures a model and prints a summary."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.common.cli import print_error
from pipeline.common.errors import InputError
from pipeline.tasks.registry import DEFAULT

if TYPE_CHECKING:
    from pipeline.evaluate.classes import ClassMap
    from pipeline.evaluate.report import Report
    from pipeline.weights.load import LoadedModel
    from sharding import Manifest


LISTED = 5
"""Number of weakest classes, and of most frequent mistakes, that are printed."""


def format_summary(report: "Report", matched: "ClassMap", model: "LoadedModel", manifest: "Manifest") -> list[str]:
    """Return the result in a few lines."""
    among = "" if len(matched.outputs) == model.card.num_classes else f" among {len(matched.outputs)} classes"
    lines = [
        f"{model.card.name} on {manifest.stem}, {report.samples:,} images{among}",
        *([f"  weights            {model.origin}"] if model.origin else []),
        f"  top-1              {100 * report.top1:.2f} %",
        f"  top-5              {100 * report.top5:.2f} %",
        f"  per class          {100 * report.mean_class_accuracy:.2f} % on average",
        f"  calibration error  {100 * report.calibration_error:.2f} %",
        f"  loss               {report.loss:.4f}",
        f"  throughput         {report.images_per_s:,.0f} images/s, loading included",
    ]
    accuracy = report.class_accuracy
    weakest = sorted((k for k in range(len(accuracy)) if accuracy[k] < 1), key=lambda k: accuracy[k])[:LISTED]
    if weakest:
        entries = [f"{_short_name(matched, k)} {100 * accuracy[k]:.0f} %" for k in weakest]
        lines.append("  weakest classes    " + ", ".join(entries))
    mistakes = report.confusions(LISTED)
    if mistakes:
        entries = [
            f"{_short_name(matched, label)} for {_short_name(matched, guess)} ({count})"
            for label, guess, count in mistakes
        ]
        lines.append("  mistaken most      " + ", ".join(entries))
    return lines


def _short_name(matched: "ClassMap", index: int) -> str:
    """Return the first of a class's names, or its WordNet id where it has none."""
    wnid, name = matched.classes[index]
    return name.split(",")[0] or wnid


def main(
    model: str,
    /,
    *,
    shards: str,
    split: str = "validation",
    data_name: str | None = None,
    name: str | None = None,
    entry: str | None = None,
    subset: bool = False,
    precision: Literal["fp32", "bf16"] = "fp32",
    workers: int = 2,
    output: Path | None = None,
    no_log: bool = False,
) -> int:
    """Measure top-1, top-5, per-class accuracy, confusion, calibration and throughput.

    Args:
        model: A run directory, a models:/ URI, or a file of weights (.safetensors, .pth, .pt, .bin, .ckpt).
        shards: Folder or URI with the split's manifest.
        split: Split to evaluate on.
        data_name: Which data set, where the folder holds several (sharding.build --name).
        name: Name of the data in MLflow, such as imagenet-v2; by default the name in its manifest.
        entry: Entry of the file to take, such as state_dict; by default averaged weights if there are some.
        subset: Let only the split's own classes compete, as ImageNet-A and -R are scored.
        precision: Arithmetic of the forward.
        workers: Loader processes.
        output: JSON file that gets every measured value.
        no_log: Do not add the result to the MLflow run that the model came from.
    """
    # A shell leaves `~` in `--output=~/report.json`.
    output = None if output is None else Path(os.path.expanduser(output))
    if output is not None and not output.absolute().parent.is_dir():
        raise InputError(f"--output {output}: there is no such folder")
    from pipeline.weights.load import load_model

    loaded = load_model(model, entry)
    if loaded.card.task != DEFAULT:
        return _measure_scores(model, loaded, shards, split, data_name, name, precision, workers, output, no_log)
    from pipeline.evaluate.measure import evaluate

    report, matched, manifest = evaluate(
        loaded, shards, split, data_name=data_name, subset=subset, precision=precision, workers=workers
    )
    print("\n".join(format_summary(report, matched, loaded, manifest)))
    if output is not None:
        output.write_text(
            json.dumps(report.as_json(matched.classes), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        print(f"  everything         {output}")
    if no_log or loaded.card.mlflow_run_id is None:
        return 0
    from pipeline.evaluate.log import log_report

    return _log(model, loaded, lambda: log_report(loaded, report, matched, manifest, name or manifest.stem))


def _measure_scores(
    model: str,
    loaded: "LoadedModel",
    shards: str,
    split: str,
    data_name: str | None,
    name: str | None,
    precision: str,
    workers: int,
    output: Path | None,
    no_log: bool,
) -> int:
    """Measure a model of another task than classification, print its scores and log them; return the exit status."""
    from pipeline.evaluate.log import log_scores
    from pipeline.evaluate.scores import evaluate_scores

    report, manifest = evaluate_scores(loaded, shards, split, data_name=data_name, precision=precision, workers=workers)
    print("\n".join(report.lines(f"{loaded.card.name} on {manifest.stem}", loaded.card.of_task.scores)))
    if output is not None:
        output.write_text(json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"  everything         {output}")
    if no_log or loaded.card.mlflow_run_id is None:
        return 0
    return _log(model, loaded, lambda: log_scores(loaded, report, manifest, name or manifest.stem))


def _log(model: str, loaded: "LoadedModel", log: Callable[[], str]) -> int:
    """Log a result in MLflow, and print where or why not; return the exit status."""
    from pipeline.tracking.client import describe_failure

    try:
        run = log()
    except Exception as error:
        refusal = f"MLflow at {loaded.tracking_uri} does not take it"
        print_error(f"the result is not added to MLflow: {describe_failure(error, refusal)}")
        return 1
    print(f"  MLflow             run {run}")
    if Path(model).is_dir():
        from pipeline.tracking.settle import settle_after_contact

        settle_after_contact(Path(model))
    return 0
