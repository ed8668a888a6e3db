"""Records of `metrics.jsonl` as MLflow metrics, and their names."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.run.files import read_metrics

if TYPE_CHECKING:
    from mlflow.entities import Metric


_NOT_METRICS = ("step", "time", "attempt")


def metric_name(key: str) -> str:
    """Name in MLflow of a key of `metrics.jsonl`, grouped: `loss` is `train/loss`, `eval_top1` is `eval/top1`."""
    return f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"


def _metrics(record: dict[str, Any], step: int) -> list["Metric"]:
    from mlflow.entities import Metric

    at = int(1000 * float(record.get("time", 0)))
    return [
        Metric(metric_name(key), float(value), at, step)
        for key, value in record.items()
        if key not in _NOT_METRICS and isinstance(value, int | float) and not isinstance(value, bool)
    ]


def evaluation_metrics(run_dir: Path, step: int, model_id: str) -> "list[Metric]":
    """The evaluation of a step as metrics of a model: the very rows of the run, so none is doubled."""
    from mlflow.entities import Metric

    for record in read_metrics(run_dir):
        if record.get("step") == step and "eval_top1" in record:
            at = int(1000 * float(record["time"]))
            keys = [key for key in record if key.startswith("eval_")]
            return [Metric(metric_name(key), record[key], at, step, model_id=model_id) for key in keys]
    return []
