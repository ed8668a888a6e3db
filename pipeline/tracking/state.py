"""What is known of a run's place in MLflow: `RUN_DIR/mlflow.json`, so that every attempt and command finds it."""

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.common.atomic import write_json
from pipeline.common.errors import InputError
from pipeline.run.files import read_config

STATE_NAME = "mlflow.json"
LOCK_NAME = ".mlflow.lock"


@dataclass(kw_only=True)
class TrackingState:
    """The MLflow side of a run directory."""

    key: str
    """Names the run on the server before its id is known, so that a lost answer makes no second run."""
    run_id: str | None = None
    """MLflow run; None: not made yet."""
    experiment_id: str | None = None
    """MLflow experiment of the run."""
    tracking_uri: str | None = None
    """Where it is, passwords masked."""
    described: bool = False
    """Parameters, datasets and configuration are there."""
    shipped_step: int = -1
    """Metrics up to this step are there."""
    shipped_system: dict[str, int] = field(default_factory=dict)
    """Bytes of each node's system metrics that are there."""
    system_began: float | None = None
    """Unix seconds of the first of them, from which their steps count."""
    reported_step: int = -1
    """Last evaluated step whose report is there."""
    checkpoints: dict[str, str] = field(default_factory=dict)
    """Logged model of each checkpoint that is there, by its folder's name."""
    job_reports: list[str] = field(default_factory=list)
    """Names of the jobs' reports on their nodes that are there."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags of the last attempt."""
    status: str = "RUNNING"
    """What the run's status should be."""
    sent_status: str | None = None
    """What the server was last told."""
    behind_since: float | None = None
    """Since when the server has taken nothing, in unix seconds; None while it answers."""
    problem: str = ""
    """What it said then, or why it could not be reached."""
    began_at: float | None = None
    """When the first attempt began, in unix seconds."""
    ended_at: float | None = None
    """When the last attempt ended, in unix seconds."""


def load_state(run_dir: Path) -> TrackingState | None:
    """Read `RUN_DIR/mlflow.json`; None where there is none or it is no such file."""
    try:
        content = json.loads((run_dir / STATE_NAME).read_text())
        known = {entry.name for entry in dataclasses.fields(TrackingState)}
        return TrackingState(**{name: value for name, value in content.items() if name in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def save_state(run_dir: Path, state: TrackingState) -> None:
    """Write `RUN_DIR/mlflow.json`, whole or not at all."""
    write_json(run_dir / STATE_NAME, dataclasses.asdict(state))


@contextlib.contextmanager
def shipping_lock(run_dir: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the right to ship this run; yields False where another process has it and `wait` is off.

    A file system without locks gives the right to everyone: shipping twice stores nothing twice.
    """
    with open(run_dir / LOCK_NAME, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True


def tracking_uri_of(run_dir: Path, cwd: str | os.PathLike[str] = ".") -> str:
    """Where a run is tracked: where it began; else as its configuration says, `MLFLOW_TRACKING_URI`, or below `cwd`.

    Raises:
        ValueError: it began on a server, or waits for one, whose address (kept without passwords) must be given again.
    """
    from pipeline.common.secrets import mask_secrets
    from pipeline.tracking.client import local_database, resolve_tracking_uri

    own, given = read_config(run_dir).get("tracking_uri"), os.environ.get("MLFLOW_TRACKING_URI")
    configured = own or resolve_tracking_uri(cwd)
    state = load_state(run_dir)
    began = state.tracking_uri if state is not None else None
    nothing_there = state is None or state.run_id is None
    if began is None or began == mask_secrets(configured) or (nothing_there and (own or given)):
        return configured
    database = local_database(began)
    if database is not None:
        return began if database.exists() else configured
    if not given:
        other = ", or, since nothing of it is there yet, to another" if nothing_there else ""
        raise InputError(f"{run_dir} is tracked in MLflow at {began}: set MLFLOW_TRACKING_URI to that address{other}")
    return configured
