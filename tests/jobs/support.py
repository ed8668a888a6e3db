"""What several test files of `jobs` use: a place in a job, errors of ranks, and the starts of the counting task."""

import pickle
import time
from collections.abc import Callable
from pathlib import Path

from jobs.environment import Place

REPOSITORY = Path(__file__).parents[2]

PLACE = Place(
    rank=0,
    world_size=2,
    local_rank=0,
    local_world_size=1,
    node=0,
    master_addr="n1",
    master_port=20000,
    job_id="7",
    restarts=1,
)

HEAD = "Traceback (most recent call last):\n  File\n"
GLOO = HEAD + "RuntimeError: [gloo/pair.cc:553] Connection closed by peer [10.0.0.2]:5"
NCCL = HEAD + "torch.distributed.DistBackendError: NCCL error in: x.cpp:1\nremote process exited"
STORE = HEAD + "torch.distributed.DistStoreError: Timed out waiting for clients. 1/2"


def write_rank_error(folder: Path, rank: int, traceback: str) -> None:
    """Write what Submitit writes for a rank of job 7 that failed."""
    (folder / f"7_{rank}_result.pkl").write_bytes(pickle.dumps(("error", traceback)))


def write_rank_result(folder: Path, rank: int) -> None:
    """Write what Submitit writes for a rank of job 7 whose task has returned."""
    (folder / f"7_{rank}_result.pkl").write_bytes(pickle.dumps(("success", None)))


def starts(folder: Path, rank: int = 0) -> list[list[int]]:
    """First step, pid, restarts and port of each start of a rank of the counting task."""
    path = folder / f"rank{rank}"
    return [[int(word) for word in line.split()] for line in path.read_text().splitlines()] if path.exists() else []


def steps(folder: Path) -> list[int]:
    """The steps that rank 0 of the counting task did, in order, over all starts."""
    path = folder / "steps"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition: Callable[[], object], timeout_s: float = 90) -> None:
    """Wait until the condition is true; fail after the time-out."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
