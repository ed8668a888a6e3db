"""The parent MLflow run of a sweep: the sweep's first run creates it, and the last one to end gives it its status."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.secrets import mask_secrets
from pipeline.run.sweep import read_folder
from pipeline.tracking.state import TrackingState, load_state, save_state, shipping_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient


PARENT_TAG = "mlflow.parentRunId"
KEY_TAG = "run_key"
_END_STATUSES: list[str | None] = ["FAILED", "KILLED", "FINISHED"]
"""Statuses of a run that has ended, the worst first."""


def find_or_create_run(client: "MlflowClient", experiment: str, key: str, create: Callable[[], Any]) -> str:
    """Return the id of the run with a key; call `create` if the server has none.

    If the server's answer to `create` is lost, the next call finds the run and creates no second one.
    """
    found = client.search_runs([experiment], filter_string=f"tags.{KEY_TAG} = '{key}'")
    return (found[0] if found else create()).info.run_id


def parent_run_id(client: "MlflowClient", experiment: str, folder: Path | None) -> str | None:
    """Return the id of the parent run of the sweep in a folder; create it if it is missing. None without a folder."""
    if folder is None:
        return None
    with shipping_lock(folder, wait=True):
        sweep = read_folder(folder) or {}
        state = load_state(folder) or TrackingState(key=sweep.get("key", uuid.uuid4().hex))
        if state.run_id is None:
            tags = {KEY_TAG: state.key, "sweep": mask_secrets(" ".join(sweep.get("sweep", []))), "run_dir": str(folder)}
            state.run_id = find_or_create_run(
                client, experiment, state.key, lambda: client.create_run(experiment, run_name=folder.name, tags=tags)
            )
            state.experiment_id = experiment
            save_state(folder, state)
    return state.run_id


def update_parent_status(client: "MlflowClient", folder: Path | None) -> None:
    """Give the parent run RUNNING until every run of the sweep has ended, then the worst of their statuses."""
    if folder is None:
        return
    with shipping_lock(folder, wait=True):
        state = load_state(folder)
        if state is None or state.run_id is None:
            return
        members = [load_state(folder / name) for name in (read_folder(folder) or {}).get("members", [])]
        statuses = {member.sent_status if member else None for member in members} or {None}
        have_ended = statuses <= set(_END_STATUSES)
        status = str(min(statuses, key=_END_STATUSES.index)) if have_ended else "RUNNING"
        if status == state.sent_status:
            return
        if have_ended:
            client.set_terminated(state.run_id, status=status)
        else:
            client.update_run(state.run_id, status=status)
        state.status = state.sent_status = status
        save_state(folder, state)
