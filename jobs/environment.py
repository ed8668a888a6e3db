"""The environment variables that `torch.distributed` programs read (`RANK`, `MASTER_ADDR` …), for each cluster."""

import os
import socket
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jobs.errors import JobError
from jobs.slurm import ask

FIRST_PORT, PORTS = 20000, 12768
"""Ports 20000 to 32767: below the range from which Linux takes ports for outgoing connections."""

MASTER_SOCKET = "MASTER_SOCKET"
"""Variable of rank 0 with the descriptor of the socket that holds `MASTER_PORT`, where the task takes it."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of one process in its job.

    Attributes:
        rank: number of the process in the job.
        world_size: processes of the job.
        local_rank: number of the process on its node.
        local_world_size: processes on its node.
        node: number of the node in the job.
        master_addr: address at which rank 0 listens.
        master_port: port at which rank 0 listens.
        job_id: the cluster's name for the job.
        restarts: how often the job was requeued before this attempt.
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
        """The GPU of this process, as CUDA_VISIBLE_DEVICES names it; "" where that variable names none for it."""
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        return visible[self.local_rank] if self.local_rank < len(visible) else ""

    def export(self) -> None:
        """Set the variables for this process and its children. CUDA_VISIBLE_DEVICES is left as the cluster set it."""
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
    """Read the place of this process from the cluster's variables, through Submitit.

    Raises:
        JobError: the address of rank 0 is not known.
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


def slurm_job_of(environment: Mapping[str, str]) -> tuple[str, int]:
    """Id and number of restarts of the Slurm job with these variables; an element of an array is `ARRAY_ELEMENT`."""
    job_id = environment["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environment:
        job_id = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return job_id, int(environment.get("SLURM_RESTART_COUNT", "0"))


def master_port(token: str) -> int:
    """A port derived from `token`: the same for every process of one attempt, another for the next attempt."""
    return FIRST_PORT + zlib.crc32(token.encode()) % PORTS


def free_port() -> int:
    """A port that no process of this machine uses now, outside the range of outgoing connections."""
    with hold_port_from(master_port(str(os.getpid()))) as holder:
        return holder.getsockname()[1]


def hold_port_from(port: int) -> socket.socket:
    """A socket on the first free one of the ports from `port` on, on all addresses of this machine.

    It does not listen yet: until then a process that connects is refused, and no other program can take the port.

    Raises:
        JobError: all of them are taken.
    """
    is_dual = socket.has_dualstack_ipv6()
    for candidate in following_ports(port, 100):
        holder = socket.socket(socket.AF_INET6 if is_dual else socket.AF_INET)
        try:
            if is_dual:
                holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            holder.bind(("", candidate))
        except OSError:
            holder.close()
            continue
        return holder
    raise JobError(f"no free port among the hundred from {port} on, on this machine")


def following_ports(port: int, count: int) -> list[int]:
    """`port` and the ports after it, `count` in all, outside the range of outgoing connections."""
    return [FIRST_PORT + (port - FIRST_PORT + offset) % PORTS for offset in range(count)]


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def master_address(hosts: Sequence[str], resolves: Callable[[str], bool] = _resolves) -> str:
    """A usable address of the first node: its name, its NodeAddr in Slurm, or the address from which srun was started.

    Args:
        hosts: names of the job's nodes, in order.
        resolves: returns whether a host name can be resolved.

    Raises:
        JobError: none of the three is known.
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
    # The batch script runs on the first node, so srun was started there.
    launched_from = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if launched_from:
        return launched_from
    raise JobError(
        f"the first node of the job, {first}, has no address that this node can resolve; set it in /etc/hosts"
    )
