"""Hosts of their own for the nodes of the rehearsal cluster, made of Linux namespaces; needs root and iproute2.

Each host has an address on a bridge, a host name, and its own `/tmp` and `/dev/shm`. What the hosts share, as on a real
cluster, are the other file systems and, under `/tmp`, the folders that are named. This machine is the login node: it
has an address on the bridge too, and runs the controller.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.slurm.processes import command_of, kill, pids

INTERFACE = "eth0"
NETWORKS = range(1, 255)
"""Third byte of the addresses; each cluster takes a free one, and its bridge has the number in its name."""
PRIVATE = Path("/tmp")
_SEPARATE = ("--net", "--uts", "--mount", "--ipc")

_SET_UP = """
set -e
name=$1 folder=$2; shift 2
hostname "$name"
ip link set lo up
mount --bind "$folder/hosts" /etc/hosts
for path in "$@"; do mount --bind "$path" "$folder$path"; done
mount --rbind "$folder/tmp" /tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
exec sleep infinity
"""
"""Shell script of the first process of a host: it makes the host's own view of the machine, and keeps it."""


def why_not() -> str:
    """Why hosts cannot be made on this machine, or ""."""
    if os.geteuid() != 0:
        return "hosts of their own need root"
    for program, package in (("ip", "iproute2"), ("unshare", "util-linux"), ("nsenter", "util-linux")):
        if shutil.which(program) is None:
            return f"hosts of their own need {program}: apt-get install {package}"
    probe = f"probe{os.getpid() % 1_000_000}"
    commands = (
        ["unshare", *_SEPARATE, "mount", "-t", "tmpfs", "tmpfs", str(PRIVATE)],
        ["ip", "link", "add", probe, "type", "bridge"],
        ["ip", "link", "add", f"{probe}a", "type", "veth", "peer", "name", f"{probe}b"],
    )
    try:
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return f"hosts of their own cannot be made here: {' '.join(command)}: {done.stderr.strip()}"
    finally:
        for link in (probe, f"{probe}a"):
            subprocess.run(["ip", "link", "del", link], capture_output=True, check=False)
    return ""


class Hosts:
    """The hosts of one cluster, in the folder of the cluster.

    Args:
        directory: folder of the cluster.
        names: names of the hosts.
    """

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self.directory = directory
        self.names = names
        self._network = directory / "network"

    def is_made(self) -> bool:
        """Whether the cluster has hosts."""
        return self._network.exists()

    @property
    def network(self) -> int:
        """The number of the network, from which bridge, links and addresses have their names."""
        return int(json.loads(self._network.read_text()))

    @property
    def login_address(self) -> str:
        """The address of this machine on the bridge."""
        return f"10.213.{self.network}.254"

    def address(self, name: str) -> str:
        """The address of a host."""
        return f"10.213.{self.network}.{self.names.index(name) + 1}"

    def up(self, shared: Sequence[Path]) -> None:
        """Make the network and start all hosts.

        Args:
            shared: folders that the hosts share though they are below `/tmp`.
        """
        self._network.write_text(json.dumps(_new_bridge()))
        _ip("addr", "add", f"{self.login_address}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        (self.directory / "shared").write_text(json.dumps([str(path) for path in _below_private(shared)]))
        for name in self.names:
            self.start(name)

    def start(self, name: str) -> None:
        """Start a host that does not run."""
        folder = self._folder(name)
        private = folder / "tmp"
        private.mkdir(parents=True, exist_ok=True)
        private.chmod(0o1777)
        shared = json.loads((self.directory / "shared").read_text())
        for path in shared:
            (folder / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
        # As Debian does, a host's own name leads to an address that no other host can reach.
        lines = [f"{self.login_address} login", "127.0.0.1 localhost", f"127.0.1.1 {name}"]
        lines += [f"{self.address(other)} {other}" for other in self.names if other != name]
        (folder / "hosts").write_text("".join(f"{line}\n" for line in lines))
        first = subprocess.Popen(
            ["unshare", *_SEPARATE, "sh", "-c", _SET_UP, "sh", name, str(folder), *shared],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        (folder / "pid").write_text(str(first.pid))
        deadline = time.monotonic() + 10
        while command_of(first.pid).split()[:1] != ["sleep"]:
            if first.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"host {name} does not start")
            time.sleep(0.01)
        link = self._link(name)
        _ip("link", "add", link, "type", "veth", "peer", "name", INTERFACE, "netns", str(first.pid))
        _ip("link", "set", link, "master", self._bridge, "up")
        for command in (
            ("addr", "add", f"{self.address(name)}/24", "dev", INTERFACE),
            ("link", "set", INTERFACE, "up"),
        ):
            subprocess.run([*self.enter(name), "ip", *command], check=True)

    def enter(self, name: str) -> list[str]:
        """The words before a command that runs on a host."""
        return ["nsenter", "--target", str(self._first(name)), *_SEPARATE, "--"]

    def is_up(self, name: str) -> bool:
        """Whether a host runs."""
        return self._first(name) != 0

    def cut_off(self, name: str) -> None:
        """Take a host off the network; its processes go on, and nobody is told."""
        _ip("link", "set", self._link(name), "down")

    def reconnect(self, name: str) -> None:
        """Bring a host that was cut off back into the network."""
        _ip("link", "set", self._link(name), "up")

    def limit_network(self, name: str, megabits: float | None) -> None:
        """Limit what a host receives to so many Mbit/s; None ends the limit."""
        queue = ("dev", self._link(name), "root")
        if megabits is None:
            _ip("qdisc", "del", *queue, program="tc")
        else:
            limit = ("tbf", "rate", f"{megabits}mbit", "burst", "64kb", "latency", "400ms")
            _ip("qdisc", "replace", *queue, *limit, program="tc")

    def lose(self, name: str) -> None:
        """Turn a host off: it is off the network before its processes die, so that no connection is closed."""
        self.cut_off(name)
        own = [*self.processes(name)]
        for pid in own:
            kill(pid, signal.SIGKILL)
        _wait_for(own)
        # The kernel may keep the host's network for a while.
        _ip("link", "del", self._link(name))

    def processes(self, name: str) -> Iterator[int]:
        """The processes on a host."""
        first = self._first(name)
        own = _network_of(first) if first else None
        return (pid for pid in pids() if own is not None and _network_of(pid) == own)

    def down(self) -> None:
        """End all processes on the hosts, and remove the network."""
        if not self._network.exists():
            return
        own = [pid for name in self.names for pid in self.processes(name)]
        for pid in own:
            kill(pid, signal.SIGKILL)
        _wait_for(own)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)
        for name in self.names:
            subprocess.run(["ip", "link", "del", self._link(name)], capture_output=True, check=False)

    @property
    def _bridge(self) -> str:
        return f"rehearse{self.network}"

    def _link(self, name: str) -> str:
        return f"re{self.network}-{name}"

    def _folder(self, name: str) -> Path:
        return self.directory / "hosts" / name

    def _first(self, name: str) -> int:
        """The first process of a host, which lives as long as the host; 0 where the host does not run."""
        try:
            pid = int((self._folder(name) / "pid").read_text())
        except (OSError, ValueError):
            return 0
        return pid if command_of(pid).startswith("sleep infinity") else 0


def _new_bridge() -> int:
    """Add a bridge, and return its number."""
    problem = ""
    for number in NETWORKS:
        command = ["ip", "link", "add", f"rehearse{number}", "type", "bridge"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return number
        problem = done.stderr.strip()
    raise RuntimeError(f"no bridge can be added: {problem}")


def _below_private(shared: Sequence[Path]) -> list[Path]:
    """The folders that a host must be given in its own `/tmp`, without those that lie in another one."""
    folders = [path.resolve() for path in (*shared, Path(sys.prefix), Path(sys.base_prefix))]
    folders = [path for path in dict.fromkeys(folders) if path.is_relative_to(PRIVATE) and path != PRIVATE]
    return [path for path in folders if not any(other in path.parents for other in folders)]


def _network_of(pid: int) -> int | None:
    """The number of a process's network namespace; None where the process has ended."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return None


def _wait_for(processes: Sequence[int]) -> None:
    """Wait until processes that were killed are gone, for at most ten seconds."""
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/exe").exists() for pid in processes) and time.monotonic() < deadline:
        time.sleep(0.02)


def _ip(*arguments: str, program: str = "ip") -> None:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{program} {' '.join(arguments)}: {done.stderr.strip()}")
