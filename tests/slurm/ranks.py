"""The ranks of a job on a rehearsal cluster: kill one, or slow down those of a node."""

import contextlib
import signal

from tests.slurm.cluster import Cluster
from tests.slurm.processes import command_of, environment_of, kill
from tests.slurm.throttle import throttled


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


def slowed(cluster: Cluster, node: str, factor: float) -> contextlib.AbstractContextManager[None]:
    """Make the ranks on a node, and their loader workers, slower by a factor within this block."""
    return throttled(lambda: [pid for pid in cluster.job_processes() if _is_of_rank(pid, node)], factor)


def _is_of_rank(pid: int, node: str) -> bool:
    environment = environment_of(pid)
    return environment.get("SLURMD_NODENAME") == node and "SLURM_PROCID" in environment
