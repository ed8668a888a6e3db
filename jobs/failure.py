"""Why a job failed, as a message for the user."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from jobs import attempt_log
from jobs.results import read_traceback, result_path

LINES = 8
MIN_FREE_BYTES = 65536
"""A file system with less room counts as full."""


_PEER_LOSS = re.compile(
    "connection (closed by peer|reset by peer|refused)|connection was likely closed|socket (closed|timeout)|broken pipe"
    "|remote process exited|communicator was aborted|nccl error|peer closed|recvvalue failed|timed out waiting",
    re.IGNORECASE,
)
"""What gloo, NCCL and torch's store report when another rank has died. A rank's own error reads otherwise."""


@dataclass(frozen=True)
class RankError:
    """The error of one rank.

    Attributes:
        rank: number of the process.
        time: when the rank wrote the error, seconds since 1970.
        error: name and message of the error.
    """

    rank: int
    time: float
    error: str

    @property
    def is_peer_loss(self) -> bool:
        """Whether the rank failed only because another rank had died."""
        return is_peer_loss(self.error)


def is_peer_loss(error: str) -> bool:
    """Whether an error reports that another rank has died, so that the cause lies there."""
    return bool(_PEER_LOSS.search(error))


def rank_errors(folder: Path, job_id: str, world_size: int) -> list[RankError]:
    """The errors of the newest attempt's ranks: a rank's own errors before lost peers, then in order of time."""
    found = []
    for rank in range(world_size):
        path = result_path(folder, job_id, rank)
        traceback = read_traceback(path)
        if traceback:
            found.append(RankError(rank, path.stat().st_mtime, last_error(traceback)))
    return sorted(found, key=lambda error: (error.is_peer_loss, error.time))


def describe_failure(folder: Path, job_id: str, world_size: int) -> str:
    """Name the rank that failed first, its error, and its log.

    The other ranks fail too, since they wait for that one; their errors say less.

    Returns:
        A few lines, or "" when no rank of the job reported an error.
    """
    given_up = [event.reason for event in attempt_log.read(folder, job_id) if event.outcome == "given up"]
    if given_up:
        return f"job {job_id} was ended: {given_up[-1]}; logs: {folder}"
    for error in rank_errors(folder, job_id, world_size):
        log_file = folder / f"{job_id}_{error.rank}_log.out"
        if not error.is_peer_loss:
            return f"rank {error.rank} failed: {error.error}\n  its log: {log_file}"
        cause = find_killed_process(folder, job_id) or "another rank died without an error"
        return f"{cause}; rank {error.rank} reported: {error.error}\n  its log: {log_file}"
    return _describe_missing_space(folder)


def _describe_missing_space(folder: Path) -> str:
    """A message when the folder is gone or its disk is full, so that no rank could write its error; else ""."""
    if not folder.exists():
        return f"{folder} is gone: the run directory was removed while the job ran"
    if shutil.disk_usage(folder).free < MIN_FREE_BYTES:
        return f"the file system of {folder} is full, so that no rank could write its error: free some space"
    return ""


_KILLED = re.compile(
    r"rank \d+: killed by \w+|Node failure on \S+"
    r"|task \d+: (Killed|Out Of Memory|Segmentation fault|Bus error|Aborted)\b"
)
_BEGINS = re.compile(r"attempt \d+: rank 0: |Starting with JobEnvironment")
"""What an attempt begins with in the log of the controller, and in that of rank 0; all attempts write to the same."""


def find_killed_process(folder: Path, job_id: str) -> str:
    """What srun or the local controller reported of the newest attempt's first killed process, or "" without one."""
    for name in (f"{job_id}_controller.log", f"{job_id}_0_log.out"):
        log = tail(folder / name, lines=200)
        begin = max((start.start() for start in _BEGINS.finditer(log)), default=0)
        found = _KILLED.search(log, begin)
        if found:
            return found.group()
    return ""


def last_error(traceback: str) -> str:
    """The error at the end of a traceback with all its lines, without the frames."""
    lines = traceback.strip().splitlines()
    start = len(lines) - 1
    while start > 0 and not lines[start - 1].startswith((" ", "Traceback")):
        start -= 1
    text = "\n".join(lines[start:])
    path, colon, message = text.partition(": ")
    if not re.fullmatch(r"[\w.]+", path):
        return text
    name = path.rpartition(".")[2]
    # The messages of these are written for the user and need no class name.
    return message if name in ("JobError", "SlurmError", "ValueError") and message else f"{name}{colon}{message}"


def tail(path: Path, lines: int = LINES) -> str:
    """The last lines of a log, or "" where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""
