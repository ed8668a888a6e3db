"""The rendezvous of all ranks before the task starts, which soon names a rank that cannot reach rank 0.

Without it, `torch.distributed` waits for half an hour and then reports only a socket error.
"""

import contextlib
import json
import os
import socket
import time

from jobs.environment import FIRST_PORT, PORTS, Place
from jobs.errors import JobError

RETRY_S = 0.2


def node_name() -> str:
    """The cluster's name for this node, or the host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def rendezvous_port(place: Place) -> int:
    """The port of the rendezvous; another one than `MASTER_PORT`, which stays free for the task."""
    return FIRST_PORT + (place.master_port - FIRST_PORT + PORTS // 2) % PORTS


Location = tuple[str, str]
"""Host and GPU of a rank; the GPU is "" where the cluster assigned none."""


def rendezvous(place: Place, timeout_s: float) -> list[Location]:
    """Wait until every rank has reached rank 0.

    Args:
        place: place of this process in the job.
        timeout_s: time-out for all ranks together, in seconds.

    Returns:
        The location of each rank, in order of the ranks; the same list on every rank.

    Raises:
        JobError: a rank is missing. The ranks that rank 0 has answered name it; a rank without an answer names the
            address that it could not reach.
    """
    if place.world_size == 1:
        return [(node_name(), place.gpu)]
    deadline = time.monotonic() + timeout_s
    return _host(place, deadline, timeout_s) if place.rank == 0 else _join(place, deadline, timeout_s)


def _host(place: Place, deadline: float, timeout_s: float) -> list[Location]:
    """Rank 0: collect the locations of the other ranks, and send all of them to each."""
    locations = {0: (node_name(), place.gpu)}
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", rendezvous_port(place)), backlog=place.world_size))
        except OSError as error:
            raise JobError(f"rank 0 cannot listen on port {rendezvous_port(place)}: {error.strerror}") from None
        peers = []
        while len(locations) < place.world_size:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                peer = stack.enter_context(server.accept()[0])
            except TimeoutError:
                break
            peer.settimeout(5)
            with contextlib.suppress(OSError, ValueError, TypeError):
                # Any program may connect to the port; only a rank of this job knows the job's id.
                rank, job_id, host, gpu = json.loads(_line(peer))
                if job_id == place.job_id:
                    locations[int(rank)] = (str(host), str(gpu))
                    peers.append(peer)
        missing = sorted(set(range(place.world_size)) - set(locations))
        answer = {"missing": missing, "locations": [locations.get(rank) for rank in range(place.world_size)]}
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.sendall(json.dumps(answer).encode() + b"\n")
    return _check_answer(answer, place, timeout_s)


def _join(place: Place, deadline: float, timeout_s: float) -> list[Location]:
    """Another rank: send its location to rank 0, and wait for the answer."""
    address = (place.master_addr, rendezvous_port(place))
    message = json.dumps([place.rank, place.job_id, node_name(), place.gpu]).encode() + b"\n"
    last: Exception = TimeoutError("timed out")
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(address, timeout=max(1.0, deadline - time.monotonic())) as peer:
                peer.sendall(message)
                # Rank 0 answers once all ranks have connected, or after its own time-out.
                peer.settimeout(max(1.0, deadline - time.monotonic()) + 5)
                answer = json.loads(_line(peer))
        except (OSError, ValueError) as error:
            last = error
            time.sleep(RETRY_S)
            continue
        return _check_answer(answer, place, timeout_s)
    raise JobError(
        f"rank {place.rank} on {node_name()} did not reach rank 0 at {address[0]}:{address[1]} within "
        f"{timeout_s:.0f} s ({last}); check that the nodes are in one network and that no firewall is between them"
    )


def _check_answer(answer: dict[str, list], place: Place, timeout_s: float) -> list[Location]:
    """The locations in rank 0's answer, or JobError where it names missing ranks."""
    if answer["missing"]:
        ranks = ", ".join(str(rank) for rank in answer["missing"])
        raise JobError(
            f"rank {ranks} did not reach rank 0 at {place.master_addr}:{rendezvous_port(place)} within "
            f"{timeout_s:.0f} s; see its own log for the reason, if it has started at all"
        )
    return [(host, gpu) for host, gpu in answer["locations"]]


def _line(peer: socket.socket) -> bytes:
    """Read up to the end of the line."""
    data = b""
    while not data.endswith(b"\n"):
        part = peer.recv(65536)
        if not part:
            raise ValueError("the connection ended")
        data += part
    return data
