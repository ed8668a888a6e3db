"""The ranks of a job on a rehearsal cluster: kill one, or slow down those of a node."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

from tests.slurm.cluster import Cluster
from tests.slurm.processes import command_of, environment_of, kill

CYCLE_S = 0.06
"""How often the processes of a slow node are stopped and continued."""


class RankProcess:
    """One rank of a running job."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        kill(self.pid, signal.SIGKILL)


def rank_process(cluster: Cluster, rank: int) -> RankProcess:
    """The process with that rank; exactly one job must be running."""
    pids = [
        pid
        for pid in cluster.job_processes()
        if "jobs.rank" in command_of(pid) and environment_of(pid).get("SLURM_PROCID") == str(rank)
    ]
    if not pids:
        raise RuntimeError(f"no process has rank {rank}")
    # The rank's loader workers have the same command line, but were started later.
    return RankProcess(min(pids))


def ranks_on_host(cluster: Cluster, node: str) -> list[int]:
    """The processes of ranks on a host, with their guards; those of srun, whose command names the ranks', are none."""
    commands = {pid: command_of(pid) for pid in cluster.hosts.processes(node)}
    return [pid for pid, command in commands.items() if "jobs.rank" in command and not command.startswith("srun")]


@contextlib.contextmanager
def slowed(cluster: Cluster, node: str, factor: float) -> Iterator[None]:
    """Make the ranks on a node, and their loader workers, slower by a factor within this block.

    They are stopped for a part of each cycle, so they compute as on a slow processor, whatever the machine's cores and
    control groups are.
    """
    over = threading.Event()
    brake = threading.Thread(target=_brake, args=(cluster, node, factor, over), daemon=True)
    brake.start()
    try:
        yield
    finally:
        over.set()
        brake.join()


def _brake(cluster: Cluster, node: str, factor: float, over: threading.Event) -> None:
    searched, own = 0.0, list[int]()
    while not over.is_set():
        if time.monotonic() - searched > 1.0:
            own = [pid for pid in cluster.job_processes() if _is_of_rank(pid, node)]
            searched = time.monotonic()
        for pid in own:
            kill(pid, signal.SIGSTOP)
        time.sleep(CYCLE_S * (1 - 1 / factor))
        for pid in own:
            kill(pid, signal.SIGCONT)
        time.sleep(CYCLE_S / factor)


def _is_of_rank(pid: int, node: str) -> bool:
    environment = environment_of(pid)
    return environment.get("SLURMD_NODENAME") == node and "SLURM_PROCID" in environment
