"""The ranks meet before the task starts, so that one that cannot reach the first is named, and soon.

Without this, `torch.distributed` waits for half an hour and then tells of a socket.
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
    """What the cluster calls this node, or the machine's own name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def meeting_port(place: Place) -> int:
    """A port beside `MASTER_PORT`, which stays free for the task."""
    return FIRST_PORT + (place.master_port - FIRST_PORT + PORTS // 2) % PORTS


Seat = tuple[str, str]
"""Host and GPU of a rank; the latter "" where the cluster gave none."""


def meet(place: Place, timeout_s: float) -> list[Seat]:
    """Wait until every rank has reached rank 0.

    Args:
        place: of this process.
        timeout_s: for all of them together.

    Returns:
        The seat of each rank, in order; the same list on every rank.

    Raises:
        JobError: a rank is missing; rank 0 names it, and the others say whom they could not reach.
    """
    if place.world_size == 1:
        return [(node_name(), place.gpu)]
    deadline = time.monotonic() + timeout_s
    return _gather(place, deadline, timeout_s) if place.rank == 0 else _join(place, deadline, timeout_s)


def _gather(place: Place, deadline: float, timeout_s: float) -> list[Seat]:
    seats = {0: (node_name(), place.gpu)}
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", meeting_port(place)), backlog=place.world_size))
        except OSError as error:
            raise JobError(f"rank 0 cannot listen on port {meeting_port(place)}: {error.strerror}") from None
        peers = []
        while len(seats) < place.world_size:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                peer = stack.enter_context(server.accept()[0])
            except TimeoutError:
                break
            peer.settimeout(5)
            with contextlib.suppress(OSError, ValueError, TypeError):
                # Anybody may knock at a port; only a rank of this job knows its name.
                rank, job_id, host, gpu = json.loads(_line(peer))
                if job_id == place.job_id:
                    seats[int(rank)] = (str(host), str(gpu))
                    peers.append(peer)
        missing = sorted(set(range(place.world_size)) - set(seats))
        answer = {"missing": missing, "seats": [seats.get(rank) for rank in range(place.world_size)]}
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.sendall(json.dumps(answer).encode() + b"\n")
    return _settled(answer, place, timeout_s)


def _join(place: Place, deadline: float, timeout_s: float) -> list[Seat]:
    address = (place.master_addr, meeting_port(place))
    knock = json.dumps([place.rank, place.job_id, node_name(), place.gpu]).encode() + b"\n"
    last: Exception = TimeoutError("timed out")
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(address, timeout=max(1.0, deadline - time.monotonic())) as peer:
                peer.sendall(knock)
                # Rank 0 answers when all are there, or when its own time is over.
                peer.settimeout(max(1.0, deadline - time.monotonic()) + 5)
                answer = json.loads(_line(peer))
        except (OSError, ValueError) as error:
            last = error
            time.sleep(RETRY_S)
            continue
        return _settled(answer, place, timeout_s)
    raise JobError(
        f"rank {place.rank} on {node_name()} did not reach rank 0 at {address[0]}:{address[1]} within "
        f"{timeout_s:.0f} s ({last}); are the nodes in one network, and does a firewall stand between them?"
    )


def _settled(answer: dict[str, list], place: Place, timeout_s: float) -> list[Seat]:
    if answer["missing"]:
        ranks = ", ".join(str(rank) for rank in answer["missing"])
        raise JobError(
            f"rank {ranks} did not reach rank 0 at {place.master_addr}:{meeting_port(place)} within {timeout_s:.0f} s; "
            "its own log says why, if it has started at all"
        )
    return [(host, gpu) for host, gpu in answer["seats"]]


def _line(peer: socket.socket) -> bytes:
    """Read up to the end of the line."""
    data = b""
    while not data.endswith(b"\n"):
        part = peer.recv(65536)
        if not part:
            raise ValueError("the connection ended")
        data += part
    return data
