"""The MLflow run above the runs of a sweep: made by whichever of them comes first, ended by whichever comes last."""

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common.secrets import mask_secrets
from pipeline.run.sweep import read_folder
from pipeline.tracking.state import TrackingState, load_state, save_state, shipping_lock

if TYPE_CHECKING:
    from mlflow import MlflowClient


PARENT_TAG = "mlflow.parentRunId"
KEY_TAG = "run_key"
_ENDS: list[str | None] = ["FAILED", "KILLED", "FINISHED"]
"""How a run can have ended, the worst first."""


def find_or_make(client: "MlflowClient", experiment: str, key: str, make: Callable[[], Any]) -> str:
    """Id of the run that carries a key, which `make` makes where the server has none: a lost answer makes no second."""
    found = client.search_runs([experiment], filter_string=f"tags.{KEY_TAG} = '{key}'")
    return (found[0] if found else make()).info.run_id


def parent_run(client: "MlflowClient", experiment: str, config: Mapping[str, Any]) -> str | None:
    """Id of the run above the one with this `config.json`; None where it belongs to no sweep."""
    folder = _sweep_of(config)
    if folder is None:
        return None
    with shipping_lock(folder, wait=True):
        known = read_folder(folder) or {}
        state = load_state(folder) or TrackingState(key=known.get("key", uuid.uuid4().hex))
        if state.run_id is None:
            tags = {KEY_TAG: state.key, "sweep": mask_secrets(" ".join(known.get("sweep", []))), "run_dir": str(folder)}
            state.run_id = find_or_make(
                client, experiment, state.key, lambda: client.create_run(experiment, run_name=folder.name, tags=tags)
            )
            state.experiment_id = experiment
            save_state(folder, state)
    return state.run_id


def settle_parent(client: "MlflowClient", config: Mapping[str, Any]) -> None:
    """Give the run above the status that all below it make together: RUNNING until each of them has ended."""
    folder = _sweep_of(config)
    if folder is None:
        return
    with shipping_lock(folder, wait=True):
        state = load_state(folder)
        if state is None or state.run_id is None:
            return
        members = [load_state(folder / name) for name in (read_folder(folder) or {}).get("members", [])]
        seen = {member.sent_status if member else None for member in members} or {None}
        ended = seen <= set(_ENDS)
        status = str(min(seen, key=_ENDS.index)) if ended else "RUNNING"
        if status == state.sent_status:
            return
        if ended:
            client.set_terminated(state.run_id, status=status)
        else:
            client.update_run(state.run_id, status=status)
        state.status = state.sent_status = status
        save_state(folder, state)


def _sweep_of(config: Mapping[str, Any]) -> Path | None:
    folder = config.get("sweep")
    return Path(folder) if folder else None
