"""`RUN_DIR/mlflow.json`: which MLflow run belongs to a run directory, and what was sent to it."""

import contextlib
import dataclasses
import fcntl
import json
import os
import types
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from pipeline.common.atomic import write_json
from pipeline.common.errors import InputError
from pipeline.run.config import read_config

STATE_NAME = "mlflow.json"
LOCK_NAME = ".mlflow.lock"


@dataclass(kw_only=True)
class TrackingState:
    """Which MLflow run belongs to a run directory, and what the server has taken."""

    key: str
    """Tag of the run on the server, by which it is found if the answer with its id was lost."""
    run_id: str | None = None
    """Id of the MLflow run; None: not created yet."""
    experiment_id: str | None = None
    """Id of the run's MLflow experiment."""
    tracking_uri: str | None = None
    """Address of the server, passwords masked."""
    described: bool = False
    """Whether parameters, data sets and configuration were sent."""
    shipped_step: int = -1
    """Last step whose metrics were sent."""
    shipped_evaluations: list[int] = field(default_factory=list)
    """Steps whose evaluation was made and sent later than the rest of their metrics."""
    shipped_system: dict[str, int] = field(default_factory=dict)
    """Number of bytes of each node's system metrics that were sent."""
    system_began: float | None = None
    """Time of the first system metric, in unix seconds; steps of system metrics count from it."""
    reported_step: int = -1
    """Last evaluated step whose report was sent."""
    checkpoints: dict[str, str] = field(default_factory=dict)
    """Id of each checkpoint's logged model, by the name of the checkpoint's folder."""
    job_reports: list[str] = field(default_factory=list)
    """File names of the jobs' reports that were sent."""
    traces: list[str] = field(default_factory=list)
    """File names of the profiler's traces and of the snapshots of GPU memory that were sent."""
    micro_batch: str = ""
    """What was sent of the micro-batch that was found."""
    troubles: str = ""
    """What was sent of the ranks that were slow or hung."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags of the last attempt."""
    status: str = "RUNNING"
    """Status that the run should have."""
    sent_status: str | None = None
    """Status that was last sent."""
    hint: str = ""
    """What a person must do for the run to go on, where nothing goes on by itself."""
    sent_hint: str = ""
    """Hint that was last sent."""
    behind_since: float | None = None
    """Time since which the server has taken nothing, in unix seconds; None while it answers."""
    problem: str = ""
    """Error of the server, or why it could not be reached; empty while it answers."""
    began_at: float | None = None
    """Time at which the first attempt began, in unix seconds."""
    ended_at: float | None = None
    """Time at which the last attempt ended, in unix seconds."""
    folder: str = ""
    """Run directory that this state was written in."""
    inode: int = 0
    """Inode of that folder: a copy has another one, a folder that was renamed the same."""
    senders: list[str] = field(default_factory=list)
    """Tokens of this folder's attempts, from the last one that the server has; of another folder's it has another."""
    links: dict[str, str] = field(default_factory=dict)
    """Tags that name the MLflow run that this one comes from: `copied_from`, `begun_again_from`, `handed_over_from`."""


def new_key() -> str:
    """Return a key for a run, unlike any other."""
    return uuid.uuid4().hex


def load_state(run_dir: Path) -> TrackingState | None:
    """Read `RUN_DIR/mlflow.json`; return None if it is missing or cannot be used.

    In a copy of a run directory whose original still exists, the state is that of a run that nothing was sent of yet:
    two trainings would else write one MLflow run.
    """
    state = read_state(run_dir)
    return copied(state) if state is not None and _is_copy(run_dir, state) else state


def copied(state: TrackingState) -> TrackingState:
    """Return the state of a copy of a run with this state: nothing was sent of it yet."""
    return dataclasses.replace(
        state,
        key=new_key(),
        run_id=None,
        experiment_id=None,
        described=False,
        shipped_step=-1,
        shipped_evaluations=[],
        shipped_system={},
        reported_step=-1,
        checkpoints={},
        job_reports=[],
        traces=[],
        micro_batch="",
        troubles="",
        sent_status=None,
        links={"copied_from": state.run_id} if state.run_id else {},
    )


def original_of(run_dir: Path) -> Path | None:
    """Return the run directory that this one is a copy of; None if it is none, was moved, or the original is gone.

    An original on another host is not seen. Then the folder that goes on first keeps the MLflow run, and the other
    one finds out when it sends (`Shipper.ship`).
    """
    state = read_state(run_dir)
    return Path(state.folder) if state is not None and _is_copy(run_dir, state) else None


def _is_copy(run_dir: Path, state: TrackingState) -> bool:
    """Whether the state was written in another folder that still exists."""
    try:
        return 0 != state.inode != run_dir.stat().st_ino and Path(state.folder).stat().st_ino == state.inode
    except OSError:
        return False


def read_state(run_dir: Path) -> TrackingState | None:
    """Read `RUN_DIR/mlflow.json` as it is, also in a copy; return None if it is missing or cannot be used."""
    try:
        content = json.loads((run_dir / STATE_NAME).read_text(encoding="utf-8"))
        kinds = get_type_hints(TrackingState)
        state = TrackingState(**{name: value for name, value in content.items() if name in kinds})
        return state if all(_is_of(getattr(state, name), kind) for name, kind in kinds.items()) else None
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _is_of(value: object, kind: Any) -> bool:
    """Whether a value read from JSON has the type of its field; the values in lists and objects are not looked at."""
    options = get_args(kind) if get_origin(kind) is types.UnionType else (kind,)
    allowed = tuple(get_origin(option) or option for option in options)
    if float in allowed:
        # All of them are times, in unix seconds.
        return value is None or (isinstance(value, int | float) and 0 <= value < 1e11)
    return isinstance(value, allowed)


def save_state(run_dir: Path, state: TrackingState) -> None:
    """Write `RUN_DIR/mlflow.json` atomically, as that of this folder."""
    state.folder, state.inode = str(run_dir.resolve()), run_dir.stat().st_ino
    write_json(run_dir / STATE_NAME, dataclasses.asdict(state))


@contextlib.contextmanager
def shipping_lock(run_dir: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of the process that sends this run; yield False if another process holds it and `wait` is off.

    A file system without locks yields True to every process: records that are sent twice are stored once.
    """
    with open(run_dir / LOCK_NAME, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True


def tracking_uri_of(run_dir: Path, cwd: str | os.PathLike[str] = ".") -> str:
    """Return the MLflow address of a run.

    It is the address that the run's first attempt used; before that, the one in its configuration, then
    `MLFLOW_TRACKING_URI`, then the sqlite file below `cwd`.

    Raises:
        InputError: the run belongs to a server whose address, which was kept without passwords, must be given again.
    """
    from pipeline.common.secrets import mask_secrets
    from pipeline.tracking.address import local_database, resolve_tracking_uri

    configured, given = read_config(run_dir).tracking_uri, os.environ.get("MLFLOW_TRACKING_URI")
    default = configured or resolve_tracking_uri(cwd)
    state = load_state(run_dir)
    known = state.tracking_uri if state is not None else None
    is_unsent = state is None or state.run_id is None
    if known is None or known == mask_secrets(default) or (is_unsent and (configured or given)):
        return default
    database = local_database(known)
    if database is not None:
        return known if database.exists() else default
    if not given:
        other = ", or, since nothing was sent there yet, to another" if is_unsent else ""
        raise InputError(f"{run_dir} is tracked in MLflow at {known}: set MLFLOW_TRACKING_URI to that address{other}")
    return default
