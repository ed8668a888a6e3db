"""What `torch.distributed` and `torchrun` programs read from the environment, worked out for each kind of cluster."""

import os
import socket
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.cluster import ask
from jobs.errors import JobError

FIRST_PORT, PORTS = 20000, 12768
"""Ports 20000 to 32767: below the range from which Linux takes the ports of outgoing connections."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one process stands in its job.

    Attributes:
        rank: number of the process in the job.
        world_size: processes of the job.
        local_rank: number of the process on its node.
        local_world_size: processes on its node.
        node: number of the node in the job.
        master_addr: where rank 0 listens.
        master_port: the port there.
        job_id: the cluster's name for the job.
        restarts: how often the job was requeued before.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node: int
    master_addr: str
    master_port: int
    job_id: str
    restarts: int

    @property
    def gpu(self) -> str:
        """The GPU that this process drives, in the words of CUDA_VISIBLE_DEVICES; "" where that names none for it."""
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        return visible[self.local_rank] if self.local_rank < len(visible) else ""

    def export(self) -> None:
        """Set the variables for this process and its children. CUDA_VISIBLE_DEVICES stays as the cluster set it."""
        os.environ.update(
            RANK=str(self.rank),
            WORLD_SIZE=str(self.world_size),
            LOCAL_RANK=str(self.local_rank),
            LOCAL_WORLD_SIZE=str(self.local_world_size),
            GROUP_RANK=str(self.node),
            MASTER_ADDR=self.master_addr,
            MASTER_PORT=str(self.master_port),
            JOB_ID=self.job_id,
            JOB_RESTARTS=str(self.restarts),
        )


def find_place() -> Place:
    """Read this process's place from the cluster's variables, as Submitit knows them.

    Raises:
        JobError: the process with rank 0 cannot be found.
    """
    from submitit import JobEnvironment

    env = JobEnvironment()
    on_slurm = env.cluster == "slurm"
    restarts = int(os.environ.get("SLURM_RESTART_COUNT" if on_slurm else "JOBS_LOCAL_RESTARTS", 0))
    if on_slurm:
        address = master_address(env.hostnames)
        port = master_port(f"{env.job_id}.{restarts}")
    else:
        address = "127.0.0.1"
        port = int(os.environ.get("JOBS_LOCAL_PORT") or free_port())
    return Place(
        rank=env.global_rank,
        world_size=env.num_tasks,
        local_rank=env.local_rank,
        local_world_size=env.num_tasks // env.num_nodes,
        node=env.node,
        master_addr=address,
        master_port=port,
        job_id=env.job_id,
        restarts=restarts,
    )


def master_port(token: str) -> int:
    """A port that every process of one attempt works out alike, and another attempt otherwise."""
    return FIRST_PORT + zlib.crc32(token.encode()) % PORTS


def free_port() -> int:
    """A port that nobody listens on at this moment, outside the range of outgoing connections."""
    for attempt in range(100):
        port = master_port(f"{os.getpid()}.{attempt}")
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise JobError(f"no free port between {FIRST_PORT} and {FIRST_PORT + PORTS - 1} on this machine")


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def master_address(hosts: Sequence[str], resolves: Callable[[str], bool] = _resolves) -> str:
    """An address of the first node that can be used: its name, what Slurm calls its address, or where srun started.

    Args:
        hosts: names of the job's nodes, in order.
        resolves: whether a name has an address.

    Raises:
        JobError: none of them is known.
    """
    first = hosts[0]
    if resolves(first):
        return first
    try:
        for word in ask("scontrol", "show", "node", "--oneliner", first).split():
            key, _, value = word.partition("=")
            if key == "NodeAddr" and resolves(value):
                return value
    except JobError:
        pass
    # The first node runs the batch script, so srun was started there.
    launched_from = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if launched_from:
        return launched_from
    raise JobError(f"the first node of the job, {first}, has no address that this node knows; set it in /etc/hosts")
