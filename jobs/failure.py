"""Why a job failed, in a user's words."""

import pickle
from pathlib import Path

from jobs import attempts

LINES = 8


def failure(folder: Path, job_id: str, world_size: int) -> str:
    """Name the rank that failed first, its error and its log.

    The ranks that were waiting for it fail as well, a little later and with less to say.

    Returns:
        A few lines, or "" when no rank of the job left a sign of failure.
    """
    given_up = [row.reason for row in attempts.read(folder) if row.job_id == job_id and row.outcome == "given up"]
    if given_up:
        return f"job {job_id} was ended: {given_up[-1]}; logs: {folder}"
    reports = []
    for rank in range(world_size):
        path = folder / f"{job_id}_{rank}_result.pkl"
        error = _error(path)
        if error:
            reports.append((path.stat().st_mtime, rank, error))
    if reports:
        _, rank, error = min(reports)
        return f"rank {rank} failed: {error}\n  its log: {folder / f'{job_id}_{rank}_log.out'}"
    return ""


def _error(path: Path) -> str:
    """Last line of the traceback that Submitit keeps of a failed rank, or "" if it did not fail."""
    try:
        # Written by this user's job into this user's private folder.
        kind, text = pickle.loads(path.read_bytes())
    except (OSError, ValueError, TypeError, EOFError, ImportError, AttributeError, pickle.UnpicklingError):
        return ""
    if kind != "error":
        return ""
    return last_error(str(text))


def last_error(traceback: str) -> str:
    """The error of a traceback with all its lines, without the frames."""
    lines = traceback.strip().splitlines()
    start = len(lines) - 1
    while start > 0 and not lines[start - 1].startswith((" ", "Traceback")):
        start -= 1
    text = "\n".join(lines[start:])
    name, _, words = text.partition(": ")
    # Errors made for people speak for themselves.
    return words if name.rsplit(".", 1)[-1] in ("JobError", "ValueError") and words else text


def tail(path: Path, lines: int = LINES) -> str:
    """The last lines of a log, or "" where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
