"""The result that each rank leaves on disk: a rank that has left one has ended well, whatever its process does later.

Submitit writes it, as a pickle, after the task of the rank has returned or raised.
"""

import pickle
from pathlib import Path
from typing import Any


def result_path(folder: Path, job_id: str, rank: int) -> Path:
    """The file with the result of one rank of a job."""
    return folder / f"{job_id}_{rank}_result.pkl"


def ended_well(folder: Path, job_id: str, rank: int) -> bool:
    """Whether the task of a rank has returned, and its result is on disk."""
    return _read(result_path(folder, job_id, rank))[0] == "success"


def read_traceback(path: Path) -> str:
    """The traceback of a rank that has raised, or "" where it has not."""
    kind, value = _read(path)
    return str(value) if kind == "error" else ""


def remove_result(folder: Path, job_id: str, rank: int) -> None:
    """Remove what the previous attempt of a rank has left, so that nothing takes it for a result of this attempt.

    Submitit refuses to write a result while its temporary file exists.
    """
    path = result_path(folder, job_id, rank)
    for stale in (path, path.with_suffix(".pkl.save_tmp")):
        stale.unlink(missing_ok=True)


def _read(path: Path) -> tuple[str, Any]:
    """Kind ("success" or "error") and value of a result; two empty strings where there is none that can be read."""
    try:
        # Safe to unpickle: this user's job wrote it into this user's private folder.
        kind, value = pickle.loads(path.read_bytes())
    except (OSError, ValueError, TypeError, EOFError, ImportError, AttributeError, pickle.UnpicklingError):
        return "", ""
    return str(kind), value
