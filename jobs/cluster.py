"""Which cluster is there, and what it says about a job: every Slurm command line of this package is run here."""

import shutil
import subprocess
from dataclasses import dataclass
from typing import Literal

from jobs.errors import JobError, NoAnswer

Cluster = Literal["slurm", "local", "debug"]

ANSWER_S = 10.0
"""Seconds a Slurm command may take: a login node whose controller is down must not hold the launcher."""


def ask(*command: str, timeout_s: float | None = None) -> str:
    """Run a command of the cluster and return what it prints.

    Raises:
        NoAnswer: it is not installed, does not answer in time, or fails; the text carries its own words.
    """
    timeout_s = ANSWER_S if timeout_s is None else timeout_s
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except FileNotFoundError:
        raise NoAnswer(f"{command[0]} is not installed on this machine") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} did not answer within {timeout_s:.0f} s") from None
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        # Slurm's commands put their own name in front.
        raise NoAnswer(f"{command[0]}: {words[-1].removeprefix(f'{command[0]}: ')}")
    return done.stdout


def choose_cluster(wanted: str) -> tuple[Cluster, str]:
    """Settle `auto`, and refuse a cluster that is not there.

    Args:
        wanted: "auto" (Slurm where `sinfo` answers, else this machine), "slurm", "local" or "debug".

    Returns:
        The cluster, and a sentence for the user that says why.

    Raises:
        JobError: an unknown name, or "slurm" where no Slurm answers.
    """
    if wanted == "local":
        return "local", "processes on this machine"
    if wanted == "debug":
        return "debug", "one process, this one"
    if wanted not in ("auto", "slurm"):
        raise JobError(f"--cluster {wanted} does not exist; there are: auto, slurm, local, debug")
    try:
        partitions = ask("sinfo", "--noheader", "--format=%R").split()
        if not partitions:
            raise JobError("sinfo lists no partition")
    except JobError as error:
        if wanted == "slurm":
            raise JobError(f"--cluster slurm: {error}; use --cluster local to run on this machine") from None
        return "local", f"processes on this machine, because {error}"
    return "slurm", f"sinfo answers, partitions {', '.join(sorted(set(partitions)))}"


@dataclass(frozen=True)
class SlurmJob:
    """What Slurm says of a job.

    Attributes:
        state: Slurm's word (PENDING, RUNNING, COMPLETED, …).
        reason: Slurm's reason for it, or "".
        restarts: how often the job was requeued.
        exit_code: "status:signal" of the batch script.
        nodes: the nodes it has, in Slurm's notation, or "".
    """

    state: str
    reason: str = ""
    restarts: int = 0
    exit_code: str = ""
    nodes: str = ""


def slurm_job(job_id: str) -> SlurmJob | None:
    """Ask Slurm about a job: the controller while it remembers, then the accounting where there is one.

    Returns:
        None when neither knows the job (any more).

    Raises:
        JobError: Slurm does not answer.
    """
    try:
        text = ask("scontrol", "show", "job", "--oneliner", job_id)
    except JobError as error:
        if "Invalid job id" not in str(error):
            raise
        return _accounted(job_id)
    # Values may hold blanks, but none of the wanted ones does, and they come before any that could imitate them.
    fields: dict[str, str] = {}
    for word in text.split():
        key, _, value = word.partition("=")
        fields.setdefault(key, value)
    clean = {key: "" if value in ("(null)", "None") else value for key, value in fields.items()}
    return SlurmJob(
        state=clean.get("JobState", "UNKNOWN"),
        reason=clean.get("Reason", ""),
        restarts=int(clean.get("Restarts") or 0),
        exit_code=clean.get("ExitCode", ""),
        nodes=clean.get("NodeList", ""),
    )


def _accounted(job_id: str) -> SlurmJob | None:
    if shutil.which("sacct") is None:
        return None
    try:
        rows = ask("sacct", "-X", "-n", "-P", "-o", "State,ExitCode,NodeList", "-j", job_id).splitlines()
    except JobError:
        return None
    if not rows:
        return None
    state, exit_code, nodes = (*rows[-1].split("|"), "", "")[:3]
    # "CANCELLED by 1000"
    return SlurmJob(state=state.split()[0] if state else "UNKNOWN", exit_code=exit_code, nodes=nodes)
