"""Writes a model in MLflow's format: code, weights, card, signature, example and requirements."""

import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.processes import PROJECT_ROOT
from pipeline.common.secrets import mask_secrets
from pipeline.run.config import RunConfig
from pipeline.tasks.served import Column, Maybe
from pipeline.tracking.metrics import evaluation_metrics
from pipeline.weights.card import CARD_NAME, WEIGHTS_NAME, ModelCard
from pipeline.weights.rows import origin_rows, result_rows

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient
    from mlflow.models import Model, ModelSignature


_LOG_LEVELS = {"utils.environment": logging.ERROR, "pyfunc": logging.WARNING}
REQUIREMENTS = ("mlflow", "torch", "safetensors", "simplejpeg", "pillow", "numpy", "pandas")


def log_model(client: "MlflowClient", run_dir: Path, weights: Path, card: ModelCard) -> str:
    """Log the weights in the folder `weights` as a model of the card's MLflow run; return the model's id.

    It does what `mlflow.pyfunc.log_model` does, which works on a global active run and ends it, by the client's calls.
    """
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    assert card.mlflow_run_id is not None
    served = card.of_task.served
    run = client.get_run(card.mlflow_run_id)
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=card.name,
        source_run_id=card.mlflow_run_id,
        params={"image_size": str(card.image_size), "num_classes": str(card.num_classes)},
        tags={"step": str(card.step), "weights": "exported"},
        model_type=served.model_type,
    )
    client.log_outputs(card.mlflow_run_id, models=[LoggedModelOutput(logged.model_id, step=card.step)])
    metrics = evaluation_metrics(run_dir, card.step, logged.model_id)
    if metrics:
        client.log_batch(card.mlflow_run_id, metrics=metrics)
    model = Model(
        artifact_path=logged.artifact_location,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
        run_id=card.mlflow_run_id,
    )
    with tempfile.TemporaryDirectory(prefix="model-") as name:
        client.log_model_artifacts(logged.model_id, str(save_model(Path(name), weights, card, model)))
    return logged.model_id


def save_model(folder: Path, weights: Path, card: ModelCard, model: "Model") -> Path:
    """Write the weights in the folder `weights` as the MLflow model `folder/model`, and return its path.

    Args:
        folder: an empty folder.
        weights: folder with `model.safetensors`.
        card: the model's card.
        model: MLflow's description of the model, which is completed.
    """
    import mlflow.pyfunc

    served = card.of_task.served
    card_file = folder / CARD_NAME
    card_file.write_text(json.dumps(card.to_dict(), indent=1, ensure_ascii=False), encoding="utf-8")
    with _quiet():
        mlflow.pyfunc.save_model(
            folder / "model",
            python_model=str(served.program),
            code_paths=[str(PROJECT_ROOT / "transxnet"), str(PROJECT_ROOT / "sharding"), *map(str, served.code)],
            artifacts={"card": str(card_file), "weights": str(weights / WEIGHTS_NAME)},
            signature=signature(served.columns),
            input_example=input_example(card.image_size),
            pip_requirements=requirements(served.packages),
            mlflow_model=model,
        )
    return folder / "model"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress MLflow's messages about its progress, and about pip, which an environment made by uv does not have."""
    loggers = {logging.getLogger(f"mlflow.{name}"): level for name, level in _LOG_LEVELS.items()}
    before = {logger: logger.level for logger in loggers}
    for logger, level in loggers.items():
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, level in before.items():
            logger.setLevel(level)


def signature(columns: Mapping[str, Column]) -> "ModelSignature":
    """Return the model's signature: the columns of its answer, which its task names.

    It says nothing of the input. With an input schema MLflow makes a table of whatever it is given: it refuses arrays,
    paths and images of Pillow, and its server drops the letters of base64 that it does not know.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array, Object, Property

    def type_of(column: Column) -> Any:
        if isinstance(column, str):
            return DataType[column]
        if isinstance(column, tuple):
            return Array(type_of(column[0]))
        return Object([field(name, kind) for name, kind in column.items()])

    def field(name: str, kind: Column | Maybe) -> Property:
        if isinstance(kind, Maybe):
            return Property(name, type_of(kind.of), required=False)
        return Property(name, type_of(kind))

    return ModelSignature(outputs=Schema([ColSpec(type_of(column), name=name) for name, column in columns.items()]))


def input_example(image_size: int) -> "pd.DataFrame":
    """Return a table with one generated JPEG, as an example of the model's input."""
    import numpy as np
    import pandas as pd
    from PIL import Image

    ramp = np.linspace(0, 255, max(image_size, 32), dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:, None], np.uint8(128)), axis=-1)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG")
    return pd.DataFrame({"image": [file.getvalue()]})


def requirements(more: tuple[str, ...] = ()) -> list[str]:
    """Return the packages that loading needs, at the versions installed here (without a build's local suffix)."""
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in (*REQUIREMENTS, *more)]


def describe(card: ModelCard, name: str, config: RunConfig, tracking_uri: str) -> str:
    """Return the text of a version's page in the registry: results, origin, and how to load the model `name`."""
    served = card.of_task.served
    average = "moving average" if config.train_fields["ema_decay"] else "as trained"
    rows = {
        **result_rows(card),
        "trained for": f"{card.step:,} steps, {card.epoch:.4g} epochs at batch {config.global_batch_size:,}",
        "weights": f"{average} at the step of the best {card.of_task.scores.primary(card.scores).label}",
        **({"began from": mask_secrets(config.initialised_from)} if config.initialised_from else {}),
        **({"learned from": mask_secrets(config.distilled_from)} if config.distilled_from else {}),
        "precision": config.train_fields["precision"],
        **origin_rows(card),
    }
    # MLflow's page shows the columns of a table without a gap.
    table = "\n".join(f"| {label}&emsp; | {value} |" for label, value in rows.items())
    return f"""{name}, {served.kind}.

| model&emsp; | {card.name} |
|---|---|
{table}

How to load it:

```python
import mlflow

mlflow.set_tracking_uri("{mask_secrets(tracking_uri)}")  # or MLFLOW_TRACKING_URI
model = mlflow.pyfunc.load_model("models:/{name}@champion")
model.predict([open("photo.jpg", "rb").read()])  # {served.answer}
network = model.unwrap_python_model().network  # the torch.nn.Module
{_builder(card, name) if served.has_builder else ""}```
"""


def _builder(card: ModelCard, name: str) -> str:
    return f"""
import transxnet  # the same network where this project is installed

network = transxnet.{card.name}(pretrained="models:/{name}@champion")
"""
