"""Connects to the MLflow server: its address, the time-outs of requests, and a client.

mlflow is imported only when a client is opened, so that commands which only print start at once.
"""

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from pipeline.common.errors import PipelineError, one_line
from pipeline.common.secrets import mask_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient


DEFAULT_STORE = "runs/mlflow.db"
ARTIFACT_FOLDER = "mlartifacts"
DEFAULT_EXPERIMENT = "transxnet"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow show the experiment's pages for training rather than for language models."""


class TrackingError(PipelineError, RuntimeError):
    """The tracking server or registry failed; the message is one line without secrets."""


def resolve_tracking_uri(cwd: str | os.PathLike[str]) -> str:
    """Return `MLFLOW_TRACKING_URI` if it is set, else the address of the sqlite file `runs/mlflow.db` below `cwd`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(cwd).resolve() / DEFAULT_STORE}"


def bound_requests(*, timeout_s: int, retries: int) -> dict[str, str]:
    """Return environment variables that bound MLflow's requests and silence it, without those that are set already.

    With MLflow's defaults one call to a dead server takes four minutes.

    Args:
        timeout_s: time-out of a request.
        retries: number of times that a failed request is repeated.
    """
    variables = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        # Otherwise a model carries the checkout's uv.lock, with the addresses of the registries that it was made from.
        "MLFLOW_UV_AUTO_DETECT": "false",
    }
    return {name: value for name, value in variables.items() if name not in os.environ}


def open_client(uri: str) -> "MlflowClient":
    """Open a client of the server or database at `uri`; a sqlite file and its folder are created.

    Raises:
        TrackingError: the store cannot be opened.
    """
    path = local_database(uri)
    try:
        import logging

        import mlflow

        # Otherwise MLflow logs every step of creating a database.
        for name in ("mlflow.store.db.utils", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        if path is not None and not path.exists():
            _create_database(path)
        return mlflow.MlflowClient(tracking_uri=uri)
    except Exception as error:
        raise TrackingError(f"MLflow at {mask_secrets(uri)} cannot be opened: {one_line(error)}") from error


def _create_database(path: Path) -> None:
    """Create a sqlite store atomically: in a temporary file that is then linked to `path`.

    MLflow takes seconds to create its tables. A preemption meanwhile, or two runs that start together, would leave half
    a database that no later run can open.
    """
    import mlflow

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        mlflow.MlflowClient(tracking_uri=f"sqlite:///{temporary}")
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
        except OSError:
            # The file system has no hard links.
            if not path.exists():
                temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def mlflow_session(uri: str, *, timeout_s: int = 60, retries: int = 2) -> Iterator["MlflowClient"]:
    """Yield a client of `uri` with bounded requests; `uri` is also the process's tracking server until the block ends.

    Parts of MLflow use the process's server instead of the client's. Afterwards the environment is as before.

    Raises:
        TrackingError: the store cannot be opened.
    """
    bounds = bound_requests(timeout_s=timeout_s, retries=retries)
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ.update(bounds)
    try:
        client = open_client(uri)
        import mlflow

        mlflow.set_tracking_uri(uri)
        try:
            yield client
        finally:
            mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType] - how MLflow forgets it
    finally:
        for name in bounds:
            os.environ.pop(name, None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def local_database(uri: str) -> Path | None:
    """Return the file of a sqlite store; None for a server or another database."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0])).resolve()


def experiment_id(client: "MlflowClient", uri: str) -> str:
    """Return the id of the runs' experiment (`MLFLOW_EXPERIMENT_NAME`, else `transxnet`), which is created if missing.

    Artifacts are kept beside a local database; a server decides itself where it keeps them.

    Raises:
        TrackingError: the experiment was deleted and not restored.
    """
    from mlflow.exceptions import MlflowException

    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    found = client.get_experiment_by_name(name)
    if found is None:
        path = local_database(uri)
        location = (path.parent / ARTIFACT_FOLDER).as_uri() if path else None
        try:
            return client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS)
        except MlflowException:
            # Another run has created it at the same time.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"MLflow experiment {name!r} was deleted: restore it (`mlflow experiments restore "
            f"--experiment-id {found.experiment_id}`) or set MLFLOW_EXPERIMENT_NAME to another name"
        )
    return found.experiment_id


def check_model_uri(uri: str) -> None:
    """Check that the registry has the model version of a `models:/` URI.

    Raises:
        TrackingError: the registry does not exist or does not answer, or has no such version.
    """
    store = resolve_tracking_uri(Path.cwd())
    database = local_database(store)
    if database is not None and not database.exists():
        raise TrackingError(f"there is no registry at {database}; MLFLOW_TRACKING_URI says where it is")
    try:
        with mlflow_session(store, timeout_s=20, retries=1):
            from mlflow.models import get_model_info

            get_model_info(uri)
    except Exception as error:  # MLflow raises many types, and each means that the nodes would not find it either
        raise TrackingError(
            f"{mask_secrets(store)} does not give it ({one_line(error)}); "
            "MLFLOW_TRACKING_URI says where the registry is"
        ) from error
