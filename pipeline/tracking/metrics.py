"""Turns records of `metrics.jsonl` into MLflow metrics."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.run.files import read_metrics
from pipeline.tasks.metric import PREFIX, was_evaluated

if TYPE_CHECKING:
    from mlflow.entities import Metric


_NOT_METRICS = ("step", "time", "attempt")


def metric_name(key: str) -> str:
    """Return the name in MLflow of a key of `metrics.jsonl`: `loss` is `train/loss`, `eval_loss` is `eval/loss`."""
    return f"eval/{key.removeprefix(PREFIX)}" if key.startswith(PREFIX) else f"train/{key}"


def record_metrics(record: dict[str, Any], step: int) -> list["Metric"]:
    """Return the numbers of a step's record as metrics, at the time that the record was made."""
    from mlflow.entities import Metric

    timestamp_ms = int(1000 * float(record.get("time", 0)))
    return [
        Metric(metric_name(key), float(value), timestamp_ms, step)
        for key, value in record.items()
        if key not in _NOT_METRICS and isinstance(value, int | float) and not isinstance(value, bool)
    ]


def evaluation_metrics(run_dir: Path, step: int, model_id: str | None) -> "list[Metric]":
    """Return the evaluation of a step as metrics of a logged model, or of the run; empty if it was not evaluated.

    They all have the time of the step's record, so that MLflow stores each once, however often they are sent.
    """
    from mlflow.entities import Metric

    for record in read_metrics(run_dir):
        if record.get("step") == step and was_evaluated(record):
            timestamp_ms = int(1000 * float(record.get("time", 0)))
            keys = [key for key in record if key.startswith(PREFIX)]
            return [Metric(metric_name(key), record[key], timestamp_ms, step, model_id=model_id) for key in keys]
    return []
