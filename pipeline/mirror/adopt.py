"""In which MLflow run a run goes on that was brought from a mirror."""

import contextlib
import dataclasses
import sqlite3
from pathlib import Path

from pipeline.common.secrets import mask_secrets
from pipeline.tracking.address import local_database, resolve_tracking_uri
from pipeline.tracking.state import copied, read_state, save_state


def adopt_tracking(folder: Path) -> None:
    """Let the run go on in its MLflow run if the tracking server is the same; else in a new one that names the former.

    Args:
        folder: what was fetched.
    """
    state = read_state(folder)
    if state is None:
        return
    here = resolve_tracking_uri(Path.cwd())
    if state.run_id is None or not _knows(here, state.tracking_uri, state.run_id):
        links = {"handed_over_from": state.run_id} if state.run_id else state.links
        state = dataclasses.replace(copied(state), links=links, tracking_uri=None)
    # The files of system metrics begin anew here.
    state.shipped_system = {}
    save_state(folder, state)


def _knows(here: str, there: str | None, run_id: str) -> bool:
    """Whether the tracking store of this place is the one of the run; a database is asked, for paths may be alike."""
    if mask_secrets(here) != there:
        return False
    database = local_database(here)
    if database is None:
        return True
    try:
        with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
            return connection.execute("select 1 from runs where run_uuid = ?", (run_id,)).fetchone() is not None
    except sqlite3.Error:
        return False
