"""A real Slurm cluster of four nodes on this machine: `python -m tests.slurm.cluster up|down|status`.

munged, slurmctld and four slurmd run as the present user in a folder of their own, on ports of their own, so that
neither the machine's Slurm nor another rehearsal is touched. Whoever exports the printed SLURM_CONF works with it.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

NODES = ("n1", "n2", "n3", "n4")
FIRST_PORT, LAST_PORT = 11000, 19000
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random")
"""Stand for GPUs: Slurm wants device files to count and to number, and opens none of them."""
DEFAULT_DIRECTORY = Path(f"/tmp/slurm-rehearsal-{os.getuid()}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What differs between rehearsals.

    Attributes:
        grace_s: seconds between the announcement of a preemption and the kill.
        user_signal: whether a preemption also sends the signal of `--signal`.
        gpus: GPUs each node claims to have, at most 4; counted and numbered only, no device is touched.
        cpus: cores each node claims to have.
        slurmd_timeout_s: silence after which a node counts as lost.
        kill_wait_s: seconds between TERM and KILL when a job is ended.
    """

    grace_s: int = 15
    user_signal: bool = False
    gpus: int = 0
    cpus: int = 4
    slurmd_timeout_s: int = 6
    kill_wait_s: int = 5


def _config(directory: Path, settings: Settings, port: int) -> str:
    host = socket.gethostname()
    user = getpass.getuser()
    gres = f"Gres=gpu:{settings.gpus}" if settings.gpus else ""
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + 1 + number} "
        f"CPUs={settings.cpus} RealMemory=4000 Feature=rehearsal {gres}"
        for number, name in enumerate(NODES)
    )
    return f"""ClusterName=rehearsal
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool.%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.%n.log
{"SlurmctldParameters=preempt_send_user_signal" if settings.user_signal else ""}
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SlurmdTimeout={settings.slurmd_timeout_s}
SlurmctldTimeout=30
KillWait={settings.kill_wait_s}
MinJobAge=120
OverTimeLimit=0
{"GresTypes=gpu" if settings.gpus else ""}
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime={settings.grace_s} MaxTime=120 State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=120 State=UP
"""


def _program(name: str) -> str:
    return shutil.which(name) or f"/usr/sbin/{name}"


def _free_ports(count: int) -> int:
    for first in range(FIRST_PORT, LAST_PORT, count):
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

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to talk to this cluster."""
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

    def up(self, settings: Settings, timeout_s: float = 30) -> None:
        """Start everything and wait until the four nodes are idle; on any failure nothing keeps running."""
        self.down()
        self.directory.mkdir(mode=0o700, parents=True)
        (self.directory / "state").mkdir()
        self.config.write_text(_config(self.directory, settings, _free_ports(1 + len(NODES))))
        if settings.gpus:
            lines = [f"Name=gpu File={device}\n" for device in DEVICES[: settings.gpus]]
            (self.directory / "gres.conf").write_text("".join(lines))
        key = self.directory / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        try:
            self._start_munged(key)
            self._start("slurmctld")
            for node in NODES:
                self.start_node(node)
            self.wait_until_idle(timeout_s)
        except BaseException:
            print(self.logs(), file=sys.stderr)
            self.down()
            raise

    def wait_until_idle(self, timeout_s: float = 30) -> None:
        """Wait until every node is up and has nothing to do."""
        deadline = time.monotonic() + timeout_s
        asked = ("sinfo", "-h", "-N", "-p", "low", "-o", "%T")
        while (seen := self.run(*asked, check=False).split()) != ["idle"] * len(NODES):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the nodes are not idle after {timeout_s:.0f} s: {seen}")
            time.sleep(0.2)

    def clear(self) -> None:
        """End all jobs and bring lost nodes back."""
        self.run("scancel", "--user", getpass.getuser())
        self.run("scancel", "--signal=KILL", "--full", "--user", getpass.getuser(), check=False)
        for node in NODES:
            if not self._daemon(f"slurmd.{node}"):
                self.start_node(node)
        self.run("scontrol", "update", "PartitionName=low", f"GraceTime={Settings.grace_s}")
        self.wait_until_idle()

    def _start(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [_program(name), *arguments],
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
        """Stop slurmctld as for maintenance; its jobs run on."""
        for pid in self._daemon("slurmctld"):
            _kill(pid, signal.SIGTERM)
            while _command(pid):
                time.sleep(0.05)

    def start_controller(self) -> None:
        """Start slurmctld, which takes up where it was."""
        self._start("slurmctld")

    def start_node(self, node: str) -> None:
        """Start the slurmd of one node."""
        (self.directory / f"spool.{node}").mkdir(exist_ok=True)
        self._start("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """Lose a node: kill -9 its slurmd, the job steps it runs and their processes."""
        for pid in self._daemon(f"slurmd.{node}"):
            _kill(pid, signal.SIGKILL)
        for pid in self.job_processes():
            environment = _environment(pid)
            if environment.get("SLURMD_NODENAME") == node:
                _kill(pid, signal.SIGKILL)
        for pid in self._step_daemons(node):
            _kill(pid, signal.SIGKILL)

    def _daemon(self, name: str) -> list[int]:
        try:
            pid = int((self.directory / f"{name}.pid").read_text())
        except (OSError, ValueError):
            return []
        # A pid file outlives a killed daemon, and its number may be somebody else's by now.
        return [pid] if name.split(".")[0] in _command(pid) else []

    def job_processes(self) -> Iterator[int]:
        """The processes of all jobs, with their children."""
        for pid in _pids():
            environment = _environment(pid)
            if environment.get("SLURM_CONF") == str(self.config) and "SLURM_JOB_ID" in environment:
                yield pid

    def _step_daemons(self, node: str = "") -> Iterator[int]:
        """The slurmstepd processes, of one node or of all: they hold their node's spool folder open."""
        for pid in _pids():
            if "slurmstepd" not in _command(pid):
                continue
            with contextlib.suppress(OSError):
                links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
                folder = str(self.directory / (f"spool.{node}" if node else "spool."))
                logs = str(self.directory / (f"slurmd.{node}.log" if node else "slurmd."))
                if any(link.startswith((folder, logs)) for link in links):
                    yield pid

    def down(self) -> None:
        """End every process of the cluster and of its jobs, and remove its folder. Works on half a cluster too."""
        if not self.directory.exists():
            return
        pids = [*self._daemon("slurmctld"), *[pid for node in NODES for pid in self._daemon(f"slurmd.{node}")]]
        steps = [*self._step_daemons()]
        jobs = [*self.job_processes()]
        munged = self._daemon("munged")
        for pid in [*pids, *steps, *jobs]:
            _kill(pid, signal.SIGKILL)
        for pid in munged:
            _kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while any(Path(f"/proc/{pid}/exe").exists() for pid in [*pids, *steps, *jobs, *munged]):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        shutil.rmtree(self.directory, ignore_errors=True)

    def logs(self, lines: int = 15) -> str:
        """The ends of all daemons' logs."""
        parts = []
        for path in sorted(self.directory.glob("*.log")):
            parts.append(f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:]))
        return "\n".join(parts)


class RankProcess:
    """One rank of a running job."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def kill(self) -> None:
        """End it without a word."""
        _kill(self.pid, signal.SIGKILL)


def rank_process(cluster: Cluster, rank: int) -> RankProcess:
    """The process with that rank; there must be one running job."""
    pids = [
        pid
        for pid in cluster.job_processes()
        if "jobs.rank" in _command(pid) and _environment(pid).get("SLURM_PROCID") == str(rank)
    ]
    if not pids:
        raise RuntimeError(f"no process has rank {rank}")
    # Its loader workers look alike, and came later.
    return RankProcess(min(pids))


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _environment(pid: int) -> dict[str, str]:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    pairs = (word.decode(errors="replace").partition("=") for word in words)
    return {key: value for key, _, value in pairs}


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@contextlib.contextmanager
def rehearsal(directory: Path, settings: Settings) -> Iterator[Cluster]:
    """A cluster for a while; it ends with this block, and also when this process is killed."""
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
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    try:
        cluster.up(settings)
        yield cluster
    finally:
        guard.kill()
        guard.wait()
        cluster.down()


def _guard(cluster: Cluster, pid: int) -> None:
    while Path(f"/proc/{pid}/exe").exists() and os.getppid() == pid:
        time.sleep(0.5)
    cluster.down()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.cluster", description=__doc__)
    parser.add_argument("action", choices=["up", "down", "status", "guard"])
    parser.add_argument("--directory", type=Path, default=DEFAULT_DIRECTORY, help="folder of the cluster")
    parser.add_argument("--grace-s", type=int, default=Settings.grace_s, help="seconds of notice before a preemption")
    parser.add_argument("--user-signal", action="store_true", help="preempt_send_user_signal")
    parser.add_argument(
        "--gpus", type=int, default=0, choices=range(len(DEVICES) + 1), help="GPUs each node claims to have"
    )
    parser.add_argument("--pid", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    cluster = Cluster(options.directory.absolute())
    if options.action == "guard":
        _guard(cluster, options.pid)
    elif options.action == "down":
        cluster.down()
    elif options.action == "up":
        cluster.up(Settings(grace_s=options.grace_s, user_signal=options.user_signal, gpus=options.gpus))
        print(f"four nodes are up. Next:\n  export SLURM_CONF={cluster.config}\n  sinfo")
    elif not cluster.config.exists():
        print(f"no cluster in {cluster.directory}; start one: python -m tests.slurm.cluster up")
        return 1
    else:
        print(cluster.run("sinfo", check=False) + cluster.run("squeue", check=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
