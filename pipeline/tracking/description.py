"""Logs what an MLflow run shows beside its metrics: data sets, configuration, environment, report, checkpoints."""

import contextlib
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from pipeline.common.secrets import mask_secrets
from pipeline.run.code_state import CHANGES_NAME
from pipeline.run.config import RunConfig
from pipeline.run.files import LOGS, TRACES, RunDirectoryError, checkpoints, read_events
from pipeline.run.micro_batch import has_auto, read_micro_batch
from pipeline.run.rank_troubles import describe_troubles, rank_troubles
from pipeline.run.system import query_gpus
from pipeline.tracking.metrics import evaluation_metrics
from pipeline.tracking.state import TrackingState

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, LoggedModelInput
    from mlflow.entities.model_registry import ModelVersion


CONFIGURATION = "configuration"
DESCRIPTION_TAG = "mlflow.note.content"
MICRO_BATCH_TAG = "micro_batch_size_found"
"""Tag with the micro-batch of a run whose parameter `micro_batch_size` is auto, and how it was found."""
TROUBLES_TAG = "slow_or_hanging_ranks"
HINT_TAG = "to_go_on"
"""Tag that says what a person must do for a run to go on, where nothing goes on by itself."""
MAX_TAG = 5000
"""Number of characters that are kept of a tag; of slow ranks the latest."""
EXTERNAL_TAG = "mlflow.model.isExternal"
"""Tag of a logged model whose files MLflow does not hold: a checkpoint stays in the run's directory."""


def log_description(client: "MlflowClient", run_id: str, run_dir: Path, config: RunConfig) -> None:
    """Log the data sets, the model it began from, the configuration, the environment and the code's changes."""
    inputs, models = dataset_inputs(config), model_inputs(client, config)
    if inputs or models:
        client.log_inputs(run_id, datasets=inputs, models=models)
    client.log_text(run_id, mask_secrets(json.dumps(config.content, indent=1)), f"{CONFIGURATION}/config.json")
    client.log_text(run_id, json.dumps(environment(), indent=1), f"{CONFIGURATION}/environment.json")
    patch = run_dir / CHANGES_NAME
    if patch.exists():
        client.log_text(run_id, patch.read_text(encoding="utf-8"), f"{CONFIGURATION}/{CHANGES_NAME}")


def dataset_inputs(config: RunConfig) -> "list[DatasetInput]":
    """Return the two splits with their manifests' digests; a split that cannot be read is left out."""
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.data.sources import LocalArtifactDatasetSource  # pyright: ignore[reportAttributeAccessIssue]
    from mlflow.entities import DatasetInput, InputTag

    from sharding import ShardingError, load_manifest

    splits = {"training": config.training_split, "validation": config.validation_split}
    inputs = []
    for context, (location, split, name) in splits.items():
        try:
            manifest = load_manifest(location, split, name)
        except (ShardingError, OSError):
            continue
        is_remote = "://" in location
        source = (
            resolve_dataset_source(mask_secrets(location))
            if is_remote
            else LocalArtifactDatasetSource(str(Path(location).absolute()))
        )
        # MLflow keeps 36 characters of a digest; the profile holds all of it.
        dataset = MetaDataset(source, name=manifest.stem, digest=manifest.digest[:32])
        entity = dataset._to_mlflow_entity()
        entity._profile = json.dumps(
            {
                "samples": manifest.num_samples,
                "classes": len(manifest.classes),
                "shards": len(manifest.shards),
                "bytes": sum(shard.bytes for shard in manifest.shards),
                "digest": manifest.digest,
            }
        )
        inputs.append(DatasetInput(entity, [InputTag("mlflow.data.context", context)]))
    return inputs


def model_inputs(client: "MlflowClient", config: RunConfig) -> "list[LoggedModelInput]":
    """Return the logged models that the run begins from and learns from, if they are registered and still exist."""
    from mlflow.entities import LoggedModelInput
    from mlflow.exceptions import MlflowException

    inputs = {}
    for source in (config.initialised_from, config.distilled_from):
        if source is None or not source.startswith("models:/"):
            continue
        name, _, number = source.removeprefix("models:/").partition("/")
        with contextlib.suppress(MlflowException):
            model_id = _logged_model(client.get_model_version(name, number))
            if model_id:
                inputs[model_id] = LoggedModelInput(model_id)
    return list(inputs.values())


def _logged_model(version: "ModelVersion") -> str | None:
    """Return the id of the logged model that a version was made from; None if it was made from files."""
    if version.model_id:
        return version.model_id
    # A registry in a database keeps it only in the address that the version was made from.
    scheme, _, found = (version.source or "").partition("models:/")
    return None if scheme or not found or "/" in found else found


def environment() -> dict[str, Any]:
    """Return the machine, its GPUs, the version of Python and every installed package."""
    packages = {entry.metadata["Name"]: entry.version for entry in metadata.distributions() if entry.metadata["Name"]}
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "gpus": query_gpus("name", "driver_version", "memory.total"),
        "packages": dict(sorted(packages.items(), key=lambda entry: entry[0].lower())),
    }


def log_job_reports(client: "MlflowClient", run_dir: Path, state: TrackingState) -> bool:
    """Log the jobs' reports on their nodes (devices, hosts, file systems, versions), one file for each attempt.

    Returns:
        Whether `state.job_reports` has changed.
    """
    assert state.run_id is not None
    new = [path for path in sorted((run_dir / LOGS).glob("*_report_*.json")) if path.name not in state.job_reports]
    for path in new:
        client.log_text(
            state.run_id, mask_secrets(path.read_text(encoding="utf-8")), f"{CONFIGURATION}/jobs/{path.name}"
        )
        state.job_reports.append(path.name)
    return bool(new)


def log_traces(client: "MlflowClient", run_dir: Path, state: TrackingState) -> bool:
    """Log the profiler's traces and the snapshots of GPU memory as artifacts, each once it is whole.

    Returns:
        Whether `state.traces` has changed.
    """
    assert state.run_id is not None
    new = [path for path in sorted((run_dir / TRACES).glob("[!.]*")) if path.name not in state.traces]
    for path in new:
        client.log_artifact(state.run_id, str(path), TRACES)
        state.traces.append(path.name)
    return bool(new)


def log_micro_batch(client: "MlflowClient", run_dir: Path, state: TrackingState) -> bool:
    """Set the tag with the micro-batch that was found; take it away where one is given later, or none is found yet.

    Returns:
        Whether `state.micro_batch` has changed.
    """
    from mlflow.exceptions import MlflowException

    assert state.run_id is not None
    try:
        found = read_micro_batch(run_dir) if has_auto(run_dir) else None
    except RunDirectoryError:
        return False
    described = found.describe() if found is not None else ""
    if described == state.micro_batch:
        return False
    if described:
        client.set_tag(state.run_id, MICRO_BATCH_TAG, described[:MAX_TAG])
    else:
        # An attempt that ended before it could note so may have deleted it.
        with contextlib.suppress(MlflowException):
            client.delete_tag(state.run_id, MICRO_BATCH_TAG)
    state.micro_batch = described
    return True


def log_rank_troubles(client: "MlflowClient", run_dir: Path, state: TrackingState) -> bool:
    """Set the tag that names the ranks which were slow or hung.

    Returns:
        Whether `state.troubles` has changed.
    """
    assert state.run_id is not None
    text = describe_troubles(rank_troubles(read_events(run_dir)))[-MAX_TAG:]
    if text == state.troubles:
        return False
    client.set_tag(state.run_id, TROUBLES_TAG, text)
    state.troubles = text
    return True


def log_hint(client: "MlflowClient", state: TrackingState) -> bool:
    """Set the tag with the hint, or remove it where an attempt has begun since.

    Returns:
        Whether `state.sent_hint` has changed.
    """
    assert state.run_id is not None
    if state.hint == state.sent_hint:
        return False
    if state.hint:
        client.set_tag(state.run_id, HINT_TAG, mask_secrets(state.hint)[:MAX_TAG])
    elif HINT_TAG in client.get_run(state.run_id).data.tags:
        client.delete_tag(state.run_id, HINT_TAG)
    state.sent_hint = state.hint
    return True


def log_report(client: "MlflowClient", run_id: str, run_dir: Path) -> None:
    """Log the folder `report/` as artifacts and its text as the run's description; do nothing before it is written.

    The description links to the picture, which MLflow would show in its full size, wider than the page.
    """
    from pipeline.run.report import FOLDER, PICTURE_NAME, REPORT_NAME

    folder = run_dir / FOLDER
    if not (folder / REPORT_NAME).is_file():
        return
    client.log_artifacts(run_id, str(folder), FOLDER)
    # MLflow shows the run's name above the description already.
    text = (folder / REPORT_NAME).read_text(encoding="utf-8", errors="replace")
    address = urlencode({"path": f"{FOLDER}/{PICTURE_NAME}", "run_uuid": run_id})
    text = text.replace(f"`{PICTURE_NAME}`, beside this page", f"[{FOLDER}/{PICTURE_NAME}](get-artifact?{address})")
    client.set_tag(run_id, DESCRIPTION_TAG, text.partition("\n\n")[2] if text.startswith("# ") else text)


def link_checkpoints(client: "MlflowClient", run_dir: Path, state: TrackingState) -> bool:
    """Make every kept checkpoint a logged model of the run, without its files; delete the models of removed ones.

    Returns:
        Whether `state.checkpoints` has changed.
    """
    from mlflow.entities import LoggedModelOutput

    assert state.run_id is not None
    kept = {folder.name: (step, folder) for step, folder in checkpoints(run_dir).items()}
    new = sorted(kept.keys() - state.checkpoints.keys())
    gone = sorted(state.checkpoints.keys() - kept.keys())
    for name in new:
        step, folder = kept[name]
        model = client.create_logged_model(
            state.experiment_id or "0",
            name=name,
            source_run_id=state.run_id,
            tags={"step": str(step), "checkpoint": str(folder), EXTERNAL_TAG: "true"},
            model_type="checkpoint",
        )
        state.checkpoints[name] = model.model_id
        client.log_outputs(state.run_id, models=[LoggedModelOutput(model.model_id, step=step)])
        metrics = evaluation_metrics(run_dir, step, model.model_id)
        if metrics:
            client.log_batch(state.run_id, metrics=metrics)
        client.finalize_logged_model(model.model_id, "READY")
    for name in gone:
        client.delete_logged_model(state.checkpoints[name])
        del state.checkpoints[name]
    return bool(new or gone)
