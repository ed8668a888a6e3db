"""A real Slurm cluster of four nodes on this machine: `python -m tests.slurm.cluster up|down|status`.

munged, slurmctld and four slurmd run as the current user, with their own folder and ports, so that they do not disturb
the machine's Slurm or another rehearsal. A process with the printed SLURM_CONF in its environment uses this cluster.
With `--hosts` each slurmd is on a host of its own (`tests/slurm/hosts.py`), which `cut-off NODE`, `reconnect NODE`,
`lose NODE` and `start NODE` take off the network, bring back, turn off and turn on.
"""

import argparse
import contextlib
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.slurm.config import DEVICES, NODES, Settings, config_text
from tests.slurm.hosts import Hosts, why_not
from tests.slurm.processes import command_of, environment_of, kill, pids

DEFAULT_DIRECTORY = Path(f"/tmp/slurm-rehearsal-{os.getuid()}")
FIRST_PORT, LAST_PORT = 11000, 19000
REPOSITORY = Path(__file__).parents[2]


def _program(name: str) -> str:
    return shutil.which(name) or f"/usr/sbin/{name}"


def _free_ports(count: int) -> int:
    firsts = range(FIRST_PORT, LAST_PORT, count)
    # Two clusters that start at the same time must not choose the same ports.
    start = os.getpid() % len(firsts)
    for first in (*firsts[start:], *firsts[:start]):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise RuntimeError(f"no {count} free ports between {FIRST_PORT} and {LAST_PORT}")


class Cluster:
    """A rehearsal cluster in a folder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "slurm.conf"
        self.hosts = Hosts(directory, NODES)

    @property
    def has_hosts(self) -> bool:
        """Whether each node is on a host of its own."""
        return self.hosts.is_made()

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of a process that uses this cluster."""
        return {"SLURM_CONF": str(self.config)}

    def run(self, *command: str, check: bool = True, timeout_s: float = 30) -> str:
        """Run a Slurm command on this cluster and return what it prints."""
        done = subprocess.run(
            [_program(command[0]), *command[1:]],
            env=os.environ | self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
        return done.stdout

    def up(self, settings: Settings, timeout_s: float = 30, shared: Sequence[Path] = ()) -> None:
        """Start all daemons and wait until the four nodes are idle; after a failure no process is left.

        Args:
            settings: the settings of the cluster.
            timeout_s: how long to wait for the nodes, in seconds.
            shared: folders below `/tmp` that hosts of their own share, beside the cluster's folder and the checkout.
        """
        self.down()
        self.directory.mkdir(mode=0o700, parents=True)
        (self.directory / "state").mkdir()
        try:
            addresses = None
            if settings.hosts:
                self.hosts.up([self.directory, REPOSITORY, *shared])
                addresses = [self.hosts.login_address, *(self.hosts.address(node) for node in NODES)]
            ports = _free_ports(1 + len(NODES))
            self.config.write_text(config_text(self.directory, settings, ports, addresses))
            self._start_daemons(settings, timeout_s)
        except BaseException:
            print(self.logs(), file=sys.stderr)
            self.down()
            raise

    def _start_daemons(self, settings: Settings, timeout_s: float) -> None:
        if settings.gpus:
            lines = [f"Name=gpu File={device}\n" for device in DEVICES[: settings.gpus]]
            (self.directory / "gres.conf").write_text("".join(lines))
        key = self.directory / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        self._start_munged(key)
        self._start("slurmctld")
        for node in NODES:
            self.start_node(node)
        self.wait_until_idle(timeout_s)

    def wait_until_idle(self, timeout_s: float = 30) -> None:
        """Wait until every node is up and idle."""
        deadline = time.monotonic() + timeout_s
        query = ("sinfo", "-h", "-N", "-p", "low", "-o", "%T")
        while (seen := self.run(*query, check=False).split()) != ["idle"] * len(NODES):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the nodes are not idle after {timeout_s:.0f} s: {seen}")
            time.sleep(0.2)

    def clear(self) -> None:
        """End all jobs and bring back nodes that are lost or cut off."""
        self.run("scancel", "--user", getpass.getuser())
        self.run("scancel", "--signal=KILL", "--full", "--user", getpass.getuser(), check=False)
        for node in NODES:
            if not self._daemon(f"slurmd.{node}"):
                self.start_node(node)
            elif self.has_hosts:
                self.hosts.reconnect(node)
                # Slurm itself would ask a node that had not answered after some minutes.
                self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        self.run("scontrol", "update", "PartitionName=low", f"GraceTime={Settings.grace_s}")
        self.wait_until_idle()

    def _start(self, name: str, *arguments: str, node: str = "") -> None:
        where = self.hosts.enter(node) if node and self.has_hosts else []
        subprocess.run(
            [*where, _program(name), *arguments],
            env=os.environ | self.environment,
            check=True,
            timeout=30,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )

    def _start_munged(self, key: Path) -> None:
        folder = self.directory
        self._start(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munged.pid",
            f"--log-file={folder}/munged.log",
            f"--seed-file={folder}/munge.seed",
            "--num-threads=2",
        )

    def stop_controller(self) -> None:
        """Stop slurmctld as for maintenance; its jobs go on."""
        for pid in self._daemon("slurmctld"):
            kill(pid, signal.SIGTERM)
            while command_of(pid):
                time.sleep(0.05)

    def start_controller(self) -> None:
        """Start slurmctld again with its saved state."""
        self._start("slurmctld")

    def start_node(self, node: str) -> None:
        """Start the slurmd of one node, and before it the node's host if that is off."""
        (self.directory / f"spool.{node}").mkdir(exist_ok=True)
        if self.has_hosts and not self.hosts.is_up(node):
            self.hosts.start(node)
        self._start("slurmd", "-N", node, node=node)

    def kill_node(self, node: str) -> None:
        """Make a node fail: turn its host off, or else kill -9 its slurmd, its job steps and their processes."""
        if self.has_hosts:
            self.hosts.lose(node)
            return
        for pid in self._daemon(f"slurmd.{node}"):
            kill(pid, signal.SIGKILL)
        for pid in self.job_processes():
            environment = environment_of(pid)
            if environment.get("SLURMD_NODENAME") == node:
                kill(pid, signal.SIGKILL)
        for pid in self._step_daemons(node):
            kill(pid, signal.SIGKILL)

    def _daemon(self, name: str) -> list[int]:
        try:
            pid = int((self.directory / f"{name}.pid").read_text())
        except (OSError, ValueError):
            return []
        # The pid file of a killed daemon remains, and another process may have its number now.
        return [pid] if name.split(".")[0] in command_of(pid) else []

    def job_processes(self) -> Iterator[int]:
        """The processes of all jobs, including their children."""
        for pid in pids():
            environment = environment_of(pid)
            if environment.get("SLURM_CONF") == str(self.config) and "SLURM_JOB_ID" in environment:
                yield pid

    def _step_daemons(self, node: str = "") -> Iterator[int]:
        """The slurmstepd processes of one node or of all nodes, found by their open files in the spool folder."""
        for pid in pids():
            if "slurmstepd" not in command_of(pid):
                continue
            with contextlib.suppress(OSError):
                links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
                folder = str(self.directory / (f"spool.{node}" if node else "spool."))
                logs = str(self.directory / (f"slurmd.{node}.log" if node else "slurmd."))
                if any(link.startswith((folder, logs)) for link in links):
                    yield pid

    def down(self) -> None:
        """End all processes of the cluster and of its jobs, and remove its folder; also for a half-started cluster."""
        if not self.directory.exists():
            return
        pids = [*self._daemon("slurmctld"), *[pid for node in NODES for pid in self._daemon(f"slurmd.{node}")]]
        steps = [*self._step_daemons()]
        jobs = [*self.job_processes()]
        munged = self._daemon("munged")
        for pid in [*pids, *steps, *jobs]:
            kill(pid, signal.SIGKILL)
        for pid in munged:
            kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}/exe").exists() for pid in [*pids, *steps, *jobs, *munged]):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        self.hosts.down()
        shutil.rmtree(self.directory, ignore_errors=True)

    def logs(self, lines: int = 15) -> str:
        """The last lines of all daemons' logs."""
        parts = []
        for path in sorted(self.directory.glob("*.log")):
            parts.append(f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:]))
        return "\n".join(parts)


@contextlib.contextmanager
def rehearsal(directory: Path, settings: Settings, shared: Sequence[Path] = ()) -> Iterator[Cluster]:
    """A cluster that ends with this block, and also when this process is killed; the arguments are those of `up`."""
    cluster = Cluster(directory)
    guard = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.slurm.cluster",
            "guard",
            "--directory",
            str(directory),
            "--pid",
            str(os.getpid()),
        ],
        cwd=REPOSITORY,
        start_new_session=True,
    )
    try:
        cluster.up(settings, shared=shared)
        yield cluster
    finally:
        guard.kill()
        guard.wait()
        cluster.down()


def _guard(cluster: Cluster, pid: int) -> None:
    while Path(f"/proc/{pid}/exe").exists() and os.getppid() == pid:
        time.sleep(0.5)
    cluster.down()


NODE_ACTIONS: dict[str, Callable[[Cluster, str], None]] = {
    "cut-off": lambda cluster, node: cluster.hosts.cut_off(node),
    "reconnect": lambda cluster, node: cluster.hosts.reconnect(node),
    "lose": Cluster.kill_node,
    "start": Cluster.start_node,
}
"""What the command line does to one node."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.cluster", description=__doc__)
    parser.add_argument("action", choices=["up", "down", "status", *NODE_ACTIONS, "guard"])
    parser.add_argument("node", nargs="?", choices=NODES, help=f"for {', '.join(NODE_ACTIONS)}")
    parser.add_argument("--directory", type=Path, default=DEFAULT_DIRECTORY, help="folder of the cluster")
    parser.add_argument("--grace-s", type=int, default=Settings.grace_s, help="grace time before a preemption")
    parser.add_argument(
        "--user-signal",
        action="store_true",
        help="set preempt_send_user_signal",
    )
    parser.add_argument(
        "--gpus", type=int, default=0, choices=range(len(DEVICES) + 1), help="GPUs that each node claims to have"
    )
    parser.add_argument("--hosts", action="store_true", help="a host of its own for each node (needs root)")
    parser.add_argument(
        "--share", type=Path, action="append", default=[], help="folder below /tmp that all hosts see; may be repeated"
    )
    parser.add_argument("--pid", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    cluster = Cluster(options.directory.absolute())
    if options.action == "guard":
        _guard(cluster, options.pid)
    elif options.action == "down":
        cluster.down()
    elif options.action == "up":
        if options.hosts and (reason := why_not()):
            parser.error(f"--hosts: {reason}")
        settings = Settings(
            grace_s=options.grace_s, user_signal=options.user_signal, gpus=options.gpus, hosts=options.hosts
        )
        cluster.up(settings, shared=[Path.cwd(), *options.share])
        print(f"four nodes are up. Next:\n  export SLURM_CONF={cluster.config}\n  sinfo")
    elif options.action in NODE_ACTIONS:
        if options.node is None or not (cluster.has_hosts or options.action in ("lose", "start")):
            parser.error(f"{options.action} needs a node, and a cluster that was started with --hosts")
        NODE_ACTIONS[options.action](cluster, options.node)
    elif not cluster.config.exists():
        print(f"no cluster in {cluster.directory}; start one: python -m tests.slurm.cluster up")
        return 1
    else:
        print(cluster.run("sinfo", check=False) + cluster.run("squeue", check=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
