"""A small task that behaves like a training: its ranks agree at each step, wait for each other, and save together."""

import atexit
import io
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from jobs import Outcome, StopRequested, exclude_nodes, node_name


class Group:
    """A minimal process group with one collective: the logical or of one bit from each rank.

    As in torch, a rank that waits for a dead one fails with «Connection closed by peer».
    """

    def __init__(self) -> None:
        self.rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        self.peers: list[socket.socket] = []
        if self.rank == 0:
            with socket.create_server(("", address[1]), backlog=world_size) as server:
                self.peers = [server.accept()[0] for _ in range(world_size - 1)]
        else:
            self.peers = [_connect(address)]

    def any(self, bit: bool) -> bool:
        """Whether `bit` is set on any rank."""
        if self.rank != 0:
            self.peers[0].sendall(bytes([bit]))
            return bool(_receive(self.peers[0]))
        together = bytes([any([bit, *[_receive(peer) for peer in self.peers]])])
        for peer in self.peers:
            peer.sendall(together)
        return bool(together[0])


def _connect(address: tuple[str, int]) -> socket.socket:
    deadline = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection(address, timeout=None)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _receive(peer: socket.socket) -> int:
    data = peer.recv(1)
    if not data:
        raise RuntimeError("Connection closed by peer")
    return data[0]


class AbortingOutput(io.StringIO):
    """Output that aborts the process when it is flushed and the rank's result is on disk."""

    def flush(self) -> None:
        name = f"{os.environ['JOB_ID']}_{os.environ['RANK']}_result.pkl"
        if (Path(os.environ["SUBMITIT_FOLDER"]) / name).exists():
            os.abort()


@dataclass(frozen=True, kw_only=True)
class Count:
    """Counts to `end`, one step every `pause_s` seconds; saves every `save_every` steps and when asked to stop.

    Each rank writes one line for each start to a file in `folder`: first step, pid, restarts, port. Rank 0 writes one
    line for each step that it does to the file `steps`. A later attempt ends after `then` steps of its own, if that is
    given: the first one may then go on until something stops it. At `raise_at` (rank, step), that rank raises an error;
    at `kill_at` (rank, step), it kills itself, only in the first attempt if `once`. With `stuck`, a stopped task saves
    the step from which it started.

    `ended` takes `ended_s` seconds. At `hold` ("import", "begin" or "export"), each rank writes a file of that name and
    its number, and waits `hold_s` seconds, only in the first attempt: before it connects to the others, before the
    first step, after the last step. Rank 1 aborts at its end with `crash`: "atexit" while the interpreter shuts down,
    "late" when its result is on disk. With `avoids`, the share of the partition's nodes that may be left out, the first
    attempt ends after two steps, so as to be started again without the node of rank 0.
    """

    folder: Path
    end: int = 5
    then: int | None = None
    pause_s: float = 0.05
    save_every: int = 10
    raise_at: tuple[int, int] | None = None
    kill_at: tuple[int, int] | None = None
    once: bool = True
    stuck: bool = False
    ended_s: float = 0.0
    hold: str = ""
    hold_s: float = 3.0
    crash: str = ""
    avoids: float | None = None

    def progress(self) -> str:
        """The saved step."""
        return f"step {self.saved()}"

    def ended(self, outcome: Outcome) -> None:
        """Append the outcome to a file, after the file `ending` and a while."""
        (self.folder / "ending").touch()
        time.sleep(self.ended_s)
        with (self.folder / "ended").open("a") as file:
            file.write(outcome.name + "\n")

    def saved(self) -> int:
        """The step from which to resume."""
        path = self.folder / "step"
        return int(path.read_text()) if path.exists() else 0

    def save(self, step: int, rank: int) -> None:
        """Write the step to a temporary file and rename it, on rank 0."""
        if rank == 0:
            (self.folder / "step.tmp").write_text(str(step))
            (self.folder / "step.tmp").replace(self.folder / "step")

    def _hold(self, point: str, rank: int, restarts: int) -> None:
        if self.hold == point and restarts == 0:
            (self.folder / f"{point}{rank}").touch()
            time.sleep(self.hold_s)

    def __call__(self, stop_requested: StopRequested) -> Outcome:
        """Count until the end, or until asked to stop."""
        rank, restarts = int(os.environ["RANK"]), int(os.environ["JOB_RESTARTS"])
        if rank == 1 and self.crash == "atexit":
            atexit.register(os.abort)
        if rank == 1 and self.crash == "late":
            sys.stdout = AbortingOutput()
        self._hold("import", rank, restarts)
        group = Group()
        first = self.saved()
        end = self.end if self.then is None or restarts == 0 else first + self.then
        with (self.folder / f"rank{rank}").open("a") as file:
            file.write(f"{first} {os.getpid()} {restarts} {os.environ['MASTER_PORT']}\n")
        devices = os.environ.get("CUDA_VISIBLE_DEVICES", "-")
        (self.folder / f"place{rank}").write_text(f"{os.environ['LOCAL_RANK']} {devices}\n")
        with (self.folder / f"node{rank}").open("a") as file:
            file.write(f"{node_name()}\n")
        print(f"rank {rank} starts at {first}", flush=True)
        if self.avoids is not None and rank == 0 and restarts == 0:
            exclude_nodes({node_name(): "it is slow"}, self.avoids)
        self._hold("begin", rank, restarts)
        for step in range(first, end):
            if self.raise_at == (rank, step):
                raise ValueError(f"step {step} cannot be done")
            if self.kill_at == (rank, step) and not (self.once and restarts):
                os.kill(os.getpid(), signal.SIGKILL)
            if group.any(stop_requested() or (self.avoids is not None and (restarts, step) == (0, first + 2))):
                self.save(first if self.stuck else step, rank)
                group.any(False)
                return Outcome.INTERRUPTED
            if step % self.save_every == 0:
                self.save(step, rank)
            if rank == 0:
                with (self.folder / "steps").open("a") as file:
                    file.write(f"{step}\n")
            time.sleep(self.pause_s)
        self._hold("export", rank, restarts)
        self.save(end, rank)
        group.any(False)
        return Outcome.FINISHED
