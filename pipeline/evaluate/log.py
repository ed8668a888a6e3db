"""Adds an evaluation to the MLflow run that the model comes from: metrics, tables and pictures."""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking.client import mlflow_session, refuse_deleted_run

if TYPE_CHECKING:
    from pipeline.tasks.report import Report
    from pipeline.weights.load import LoadedModel
    from sharding import Manifest


def log_report(model: "LoadedModel", report: "Report", manifest: "Manifest", name: str) -> str:
    """Log metrics `eval/NAME/...` and artifacts `evaluation/NAME/`; return the run's id.

    Raises:
        Exception: any error of MLflow.
    """
    run_id = model.card.mlflow_run_id
    assert run_id is not None
    with mlflow_session(model.tracking_uri) as client, tempfile.TemporaryDirectory(prefix="evaluation-") as folder:
        from mlflow.entities import Metric

        refuse_deleted_run(client, model.tracking_uri, run_id)
        now = int(1000 * time.time())
        dataset = {"dataset_name": name, "dataset_digest": manifest.digest[:32]}
        metrics = [
            Metric(f"eval/{name}/{key}", value, now, model.card.step, **dataset)
            for key, value in report.scalars().items()
        ]
        client.log_batch(run_id, metrics=metrics)
        report.write(Path(folder))
        client.log_artifacts(run_id, folder, f"evaluation/{name}")
    return run_id
