"""Why a job failed, in a user's words."""

import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from jobs import attempts

LINES = 8
LEAST_BYTES = 65536


_CONSEQUENCE = re.compile(
    "connection (closed by peer|reset by peer|refused)|connection was likely closed|socket (closed|timeout)|broken pipe"
    "|remote process exited|communicator was aborted|nccl error|peer closed|recvvalue failed|timed out waiting",
    re.IGNORECASE,
)
"""How gloo, NCCL and torch's store say that another rank is gone; a rank's own failure reads otherwise."""


@dataclass(frozen=True)
class Report:
    """The error of one rank.

    Attributes:
        rank: number of the process.
        time: when it was written, seconds since 1970.
        error: the error with its text.
    """

    rank: int
    time: float
    error: str

    @property
    def is_consequence(self) -> bool:
        """Whether the rank only saw that another was gone."""
        return is_consequence(self.error)


def is_consequence(error: str) -> bool:
    """Whether an error says that another rank is gone, so that its cause lies there."""
    return bool(_CONSEQUENCE.search(error))


def reports(folder: Path, job_id: str, world_size: int) -> list[Report]:
    """The errors that the ranks of the newest attempt have left, causes before consequences, then by time."""
    found = []
    for rank in range(world_size):
        path = folder / f"{job_id}_{rank}_result.pkl"
        error = _error(path)
        if error:
            found.append(Report(rank, path.stat().st_mtime, error))
    return sorted(found, key=lambda report: (report.is_consequence, report.time))


def failure(folder: Path, job_id: str, world_size: int) -> str:
    """Name the rank that failed first, its error and its log.

    The ranks that were waiting for it fail as well, with less to say.

    Returns:
        A few lines, or "" when no rank of the job left a sign of failure.
    """
    given_up = [row.reason for row in attempts.read(folder, job_id) if row.outcome == "given up"]
    if given_up:
        return f"job {job_id} was ended: {given_up[-1]}; logs: {folder}"
    for report in reports(folder, job_id, world_size):
        log = folder / f"{job_id}_{report.rank}_log.out"
        if not report.is_consequence:
            return f"rank {report.rank} failed: {report.error}\n  its log: {log}"
        cause = vanished(folder, job_id) or "a rank vanished without a word"
        return f"{cause}; rank {report.rank} saw it: {report.error}\n  its log: {log}"
    return _room(folder)


def _room(folder: Path) -> str:
    """Words for a folder in which a rank could not even leave its error; "" where there was room."""
    if not folder.exists():
        return f"{folder} is gone: the run directory was removed while the job ran"
    if shutil.disk_usage(folder).free < LEAST_BYTES:
        return f"the file system of {folder} is full, so that the ranks could not leave a reason: make room there"
    return ""


_VANISHED = re.compile(
    r"rank \d+: killed by \w+|Node failure on \S+"
    r"|task \d+: (Killed|Out Of Memory|Segmentation fault|Bus error|Aborted)\b"
)


def vanished(folder: Path, job_id: str) -> str:
    """What srun, or the local controller, says of the first process that was killed; "" where none was."""
    for name in (f"{job_id}_controller.log", f"{job_id}_0_log.out"):
        found = _VANISHED.search(tail(folder / name, lines=200))
        if found:
            return found.group()
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
    path, colon, words = text.partition(": ")
    if not re.fullmatch(r"[\w.]+", path):
        return text
    name = path.rpartition(".")[2]
    # Errors made for people speak for themselves.
    return words if name in ("JobError", "ValueError") and words else f"{name}{colon}{words}"


def tail(path: Path, lines: int = LINES) -> str:
    """The last lines of a log, or "" where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
