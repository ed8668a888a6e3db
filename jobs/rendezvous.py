"""The rendezvous of all ranks before the task starts, which soon names a rank that cannot reach rank 0.

Without it, `torch.distributed` waits for half an hour and then reports only a socket error.
"""

import contextlib
import json
import os
import socket
import time
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from jobs.environment import FIRST_PORT, PORTS, Place, following_ports, hold_port_from
from jobs.errors import JobError
from jobs.interfaces import is_loopback

RETRY_S = 0.2
PORTS_TRIED = 8
"""Another program may listen on a port: rank 0 takes the first free one of so many, and the others try all of them."""
HELLO_S = 5.0
"""Seconds a rank waits for rank 0 to say that it is rank 0, before it tries the next port."""


def node_name() -> str:
    """The cluster's name for this node, or the host name."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def rendezvous_ports(place: Place) -> list[int]:
    """The ports on which rank 0 may listen, in the order of trial; far from `MASTER_PORT`, which the task uses."""
    return following_ports(FIRST_PORT + (place.master_port - FIRST_PORT + PORTS // 2) % PORTS, PORTS_TRIED)


Location = tuple[str, str]
"""Host and GPU of a rank; the GPU is "" where the cluster assigned none."""


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """What the rendezvous has settled.

    Attributes:
        locations: the location of each rank, in order of the ranks.
        master_port: a port that was free on rank 0's node at the rendezvous.
        address: address of this rank's node in the network in which the ranks have met; "" for a single rank.
        holder: rank 0's socket on that port, which keeps it from other programs; None but on rank 0.
    """

    locations: list[Location]
    master_port: int
    address: str = ""
    holder: socket.socket | None = field(default=None, compare=False)


def rendezvous(place: Place, timeout_s: float) -> Meeting:
    """Wait until every rank has reached rank 0.

    Args:
        place: place of this process in the job.
        timeout_s: time-out for all ranks together, in seconds.

    Raises:
        JobError: a rank is missing. The ranks that rank 0 has answered name it; a rank without an answer names the
            address that it could not reach.
    """
    if place.world_size == 1:
        holder = hold_port_from(place.master_port)
        port = holder.getsockname()[1]
        return Meeting(locations=[(node_name(), place.gpu)], master_port=port, holder=holder)
    deadline = time.monotonic() + timeout_s
    return _host(place, deadline, timeout_s) if place.rank == 0 else _join(place, deadline, timeout_s)


def _host(place: Place, deadline: float, timeout_s: float) -> Meeting:
    """Rank 0: collect the locations of the other ranks, and send all of them to each."""
    locations = {0: (node_name(), place.gpu)}
    addresses: list[str] = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(place))
        peers = []
        while len(locations) < place.world_size:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                peer = stack.enter_context(server.accept()[0])
            except TimeoutError:
                break
            peer.settimeout(5)
            with contextlib.suppress(OSError, ValueError, TypeError):
                # Any program may connect to the port; only a rank of this job knows the job's name.
                rank, job, host, gpu = json.loads(_line(stack.enter_context(peer.makefile("rb"))))
                if job != _job_name(place):
                    peer.shutdown(socket.SHUT_RDWR)
                else:
                    peer.sendall(json.dumps(job).encode() + b"\n")
                    locations[int(rank)] = (str(host), str(gpu))
                    addresses.append(peer.getsockname()[0])
                    peers.append(peer)
        holder = hold_port_from(place.master_port)
        answer = {
            "missing": sorted(set(range(place.world_size)) - set(locations)),
            "locations": [locations.get(rank) for rank in range(place.world_size)],
            "master_port": holder.getsockname()[1],
            # The ranks of this node may have come by the loopback interface, and the others not.
            "address": min(addresses, key=is_loopback, default=""),
        }
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.sendall(json.dumps(answer).encode() + b"\n")
    try:
        return replace(_check_answer(answer, place, timeout_s, answer["address"]), holder=holder)
    except JobError:
        holder.close()
        raise


def _job_name(place: Place) -> str:
    """The job's id and folder: jobs of two clusters on one machine may have the same id, and so the same ports."""
    return f"{place.job_id} in {os.environ.get('SUBMITIT_FOLDER', '')}"


def _listen(place: Place) -> socket.socket:
    """Listen on the first port of the rendezvous that is free."""
    problem = ""
    for port in rendezvous_ports(place):
        try:
            return socket.create_server(("", port), backlog=place.world_size)
        except OSError as error:
            problem = f"port {port}: {error.strerror}"
    raise JobError(f"rank 0 cannot listen for the other ranks on any of {PORTS_TRIED} ports, the last one {problem}")


def _join(place: Place, deadline: float, timeout_s: float) -> Meeting:
    """Another rank: send its location to rank 0, and wait for the answer."""
    message = json.dumps([place.rank, _job_name(place), node_name(), place.gpu]).encode() + b"\n"
    last: Exception = TimeoutError("timed out")
    while time.monotonic() < deadline:
        for port in rendezvous_ports(place):
            left = max(1.0, deadline - time.monotonic())
            try:
                with (
                    socket.create_connection((place.master_addr, port), timeout=left) as peer,
                    peer.makefile("rb") as lines,
                ):
                    own = peer.getsockname()[0]
                    peer.settimeout(min(HELLO_S, left))
                    peer.sendall(message)
                    if json.loads(_line(lines)) != _job_name(place):
                        raise ValueError(f"another job listens on port {port}")
                    # Rank 0 answers once all ranks have connected, or after its own time-out.
                    peer.settimeout(max(1.0, deadline - time.monotonic()) + 5)
                    answer = json.loads(_line(lines))
            except (OSError, ValueError) as error:
                last = error
                continue
            return _check_answer(answer, place, timeout_s, answer["address"] if is_loopback(own) else own)
        time.sleep(RETRY_S)
    raise JobError(
        f"rank {place.rank} on {node_name()} did not reach rank 0 at {_address(place)} within {timeout_s:.0f} s "
        f"({last}); check that the nodes are in one network and that no firewall is between them"
    )


def _check_answer(answer: dict, place: Place, timeout_s: float, address: str) -> Meeting:
    """What rank 0's answer has settled, with this node's address, or JobError where it names missing ranks."""
    if answer["missing"]:
        ranks = ", ".join(str(rank) for rank in answer["missing"])
        raise JobError(
            f"rank {ranks} did not reach rank 0 at {_address(place)} within {timeout_s:.0f} s; see its own log for "
            "the reason, if it has started at all"
        )
    locations = [(host, gpu) for host, gpu in answer["locations"]]
    return Meeting(locations=locations, master_port=answer["master_port"], address=address)


def _address(place: Place) -> str:
    return f"{place.master_addr}:{rendezvous_ports(place)[0]}"


def _line(lines: BinaryIO) -> bytes:
    """Read up to the end of the line."""
    line = lines.readline()
    if not line.endswith(b"\n"):
        raise ValueError("the connection ended")
    return line
