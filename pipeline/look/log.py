"""Adds the pictures of a model to the MLflow run that it comes from."""

from pathlib import Path

from pipeline.tracking.client import mlflow_session, refuse_deleted_run
from pipeline.weights.load import LoadedModel

FOLDER = "look"
"""Artifacts of the run that hold the pictures."""


def log_pictures(model: LoadedModel, folder: Path) -> str:
    """Log a folder as artifacts `look/`; return where they are, in words.

    Raises:
        Exception: any error of MLflow.
    """
    run_id = model.card.mlflow_run_id
    assert run_id is not None
    with mlflow_session(model.tracking_uri) as client:
        refuse_deleted_run(client, model.tracking_uri, run_id)
        client.log_artifacts(run_id, str(folder), FOLDER)
    return f"artifacts {FOLDER}/ of run {run_id}"
