"""Connects to the MLflow server: its address, the time-outs of requests, and a client.

mlflow is imported only when a client is opened, so that commands which only print start at once.
"""

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.errors import PipelineError, one_line
from pipeline.common.secrets import mask_secrets
from pipeline.tracking.address import check_interpreter, local_database, registry_uri, resolve_tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

    from pipeline.run.config import RunConfig


ARTIFACT_FOLDER = "mlartifacts"
DEFAULT_EXPERIMENT = "transxnet"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow show the experiment's pages for training rather than for language models."""


class TrackingError(PipelineError, RuntimeError):
    """The tracking server or registry failed; the message is one line without secrets."""


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
    try:
        Path.home()
    except RuntimeError:
        # A user without a name and a home, as in a container that runs under another number: MLflow looks for one.
        variables["HOME"] = tempfile.gettempdir()
    return {name: value for name, value in variables.items() if name not in os.environ}


def open_client(uri: str) -> "MlflowClient":
    """Open a client of the server or database at `uri`; a sqlite file and its folder are created.

    Raises:
        TrackingError: the store cannot be opened.
        InputError: this interpreter cannot run MLflow.
    """
    path = local_database(uri)
    check_interpreter()
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


def experiment_id(client: "MlflowClient", uri: str, config: "RunConfig") -> str:
    """Return the id of a run's experiment; the one that is named is created if it is missing.

    It is `MLFLOW_EXPERIMENT_ID`, or named by `MLFLOW_EXPERIMENT_NAME`, as they were at the launch, else as they are
    now, else `transxnet`. Artifacts are kept beside a local database; a server decides itself where it keeps them.

    Raises:
        TrackingError: the experiment was deleted and not restored, or there is none with that id.
    """
    from mlflow.exceptions import MlflowException

    given, named = config.experiment_id, config.experiment_name
    if not given and not named:
        given, named = os.environ.get("MLFLOW_EXPERIMENT_ID"), os.environ.get("MLFLOW_EXPERIMENT_NAME")
    if given and not named:
        try:
            found = client.get_experiment(given)
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise TrackingError(
                f"MLFLOW_EXPERIMENT_ID {given}: MLflow at {mask_secrets(uri)} has no experiment with this id"
            ) from error
        _refuse_deleted(found, uri)
        return found.experiment_id
    name = named or DEFAULT_EXPERIMENT
    found = client.get_experiment_by_name(name)
    if given and (found is None or found.experiment_id != given):
        raise TrackingError(
            f"MLFLOW_EXPERIMENT_ID {given} and MLFLOW_EXPERIMENT_NAME {name} name two experiments: unset one of them"
        )
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
    _refuse_deleted(found, uri)
    return found.experiment_id


def _refuse_deleted(experiment: "Experiment", uri: str) -> None:
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"MLflow experiment {experiment.name!r} was deleted: restore it "
            f"({_restore(uri, 'experiments', '--experiment-id', experiment.experiment_id)}) or set "
            "MLFLOW_EXPERIMENT_NAME to another name"
        )


def _restore(uri: str, kind: str, flag: str, identifier: str) -> str:
    return f"MLFLOW_TRACKING_URI={mask_secrets(uri)} mlflow {kind} restore {flag} {identifier}"


def refuse_deleted_run(client: "MlflowClient", uri: str, run_id: str) -> "Run":
    """Return a run of the server; refuse one that was deleted there, alone or with its experiment.

    Raises:
        TrackingError: the message has the command that restores it.
    """
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise TrackingError(
            f"MLflow at {mask_secrets(uri)} has no run {run_id}: it was deleted for good, or this is another server; "
            "to begin a new run there, remove mlflow.json from the run's folder"
        ) from error
    if run.info.lifecycle_stage != "active":
        _refuse_deleted(client.get_experiment(run.info.experiment_id), uri)
        raise TrackingError(
            f"MLflow run {run_id} was deleted: restore it ({_restore(uri, 'runs', '--run-id', run_id)})"
        )
    return run


def describe_failure(error: Exception, refusal: str = "") -> str:
    """Describe why something of a run is not in MLflow, in one line.

    Args:
        error: what was raised while it was sent.
        refusal: what the server did, if the error is the server's, such as `MLflow at … does not take it`; empty if
            that was said already.
    """
    if isinstance(error, PipelineError):
        return one_line(error, limit=600)
    if type(error).__module__ == "builtins" and not isinstance(error, ConnectionError | TimeoutError):
        return f"an error of this machine, not of the server ({type(error).__name__}: {one_line(error)})"
    return f"{mask_secrets(refusal)}: {one_line(error)}" if refusal else one_line(error)


def fetch_model_file(uri: str, path: str) -> Path | None:
    """Return a local copy of one file of a registered model; None if the model has no such file.

    Args:
        uri: `models:/` URI of the version.
        path: of the file within the model.

    Raises:
        TrackingError: as `check_model_uri`.
    """
    check_model_uri(uri)
    with mlflow_session(resolve_tracking_uri(Path.cwd()), timeout_s=20, retries=1):
        from mlflow.artifacts import download_artifacts

        try:
            return Path(download_artifacts(f"{uri}/{path}"))
        except Exception:  # MLflow raises many types where a file does not exist
            return None


def fetch_command(run_id: str) -> str:
    """Return the command that launched the run of a registered version; empty if no server gives it.

    The server of the registry is asked first, from which the version comes; its run may be on the tracking server.
    """
    store = resolve_tracking_uri(Path.cwd())
    for server in dict.fromkeys((registry_uri() or store, store)):
        # MLflow raises many types; the command is only shown.
        with contextlib.suppress(Exception), mlflow_session(server, timeout_s=20, retries=1) as client:
            return client.get_run(run_id).data.tags.get("command", "")
    return ""


def check_model_uri(uri: str) -> None:
    """Check that the registry has the model version of a `models:/` URI.

    Raises:
        TrackingError: the registry does not exist or does not answer, or has no such version.
    """
    store = resolve_tracking_uri(Path.cwd())
    registry = registry_uri() or store
    database = local_database(registry)
    if database is not None and not database.exists():
        raise TrackingError(f"there is no registry at {database}; MLFLOW_TRACKING_URI says where it is")
    try:
        with mlflow_session(store, timeout_s=20, retries=1):
            from mlflow.models import get_model_info

            get_model_info(uri)
    except Exception as error:  # MLflow raises many types, and each means that the nodes would not find it either
        raise TrackingError(
            f"{mask_secrets(registry)} does not give it ({one_line(error)}); "
            "MLFLOW_TRACKING_URI says where the registry is"
        ) from error


def find_version(uri: str) -> str | None:
    """Return the `models:/NAME/NUMBER` URI of the version that an alias points to; None if the registry has none.

    Args:
        uri: `models:/NAME@ALIAS`.

    Raises:
        TrackingError: the registry does not answer, so that nobody knows whether it has the version.
    """
    store = resolve_tracking_uri(Path.cwd())
    database = local_database(store)
    if database is not None and not database.exists():
        return None
    name, _, alias = uri.removeprefix("models:/").partition("@")
    try:
        with mlflow_session(store, timeout_s=20, retries=1) as client:
            return f"models:/{name}/{client.get_model_version_by_alias(name, alias).version}"
    except Exception as error:  # MLflow raises many types; two codes mean that the model or the alias does not exist
        if getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise TrackingError(
            f"{mask_secrets(store)} does not say whether it has {uri} ({one_line(error)}); "
            "MLFLOW_TRACKING_URI says where the registry is"
        ) from error
