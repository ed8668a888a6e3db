"""Every Slurm command of this package runs here: which cluster there is, and how a job stands."""

import re
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from jobs.errors import JobError, SlurmError

Cluster = Literal["slurm", "local", "debug"]

ANSWER_S = 10.0
"""Time limit of a Slurm command in seconds, so that the launcher does not hang while the Slurm controller is down."""


def ask(*command: str, timeout_s: float | None = None, stdin: str | None = None) -> str:
    """Run a Slurm command and return what it prints.

    Args:
        command: program and arguments.
        timeout_s: time limit in seconds; by default `ANSWER_S`.
        stdin: what the command reads, such as a script.

    Raises:
        SlurmError: the program is not installed, does not answer in time, or fails; the message quotes its error.
    """
    timeout_s = ANSWER_S if timeout_s is None else timeout_s
    try:
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError:
        raise SlurmError(f"{command[0]} is not installed on this machine") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {timeout_s:.0f} s") from None
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        # Slurm's commands start the line with their own name.
        raise SlurmError(f"{command[0]}: {lines[-1].removeprefix(f'{command[0]}: ')}")
    return done.stdout


def check_script(script: str) -> None:
    """Have sbatch check a script without submitting it: account, quality of service, and all other options.

    Raises:
        SlurmError: sbatch would refuse the script, or does not answer.
    """
    ask("sbatch", "--test-only", stdin=script)


_NO_CLUSTER = ("configuration source", "exit status")
"""Words of the error where sinfo is installed and no cluster is configured, and where it ends without an error."""


def choose_cluster(wanted: str, *, falls_back: bool = True) -> tuple[Cluster, str]:
    """Choose the cluster for "auto", and check that a named one is there.

    Args:
        wanted: "auto" (Slurm where `sinfo` answers, else this machine), "slurm", "local" or "debug".
        falls_back: whether "auto" takes this machine although it belongs to a Slurm cluster that does not answer now.
            Then it is most likely a login node.

    Returns:
        The cluster, and a human-readable reason.

    Raises:
        JobError: the name is unknown.
        SlurmError: "slurm" was asked for, and Slurm does not answer; or "auto", and this machine may not be taken.
    """
    if wanted == "local":
        return "local", "processes on this machine"
    if wanted == "debug":
        return "debug", "one process, this one"
    if wanted not in ("auto", "slurm"):
        raise JobError(f"--cluster {wanted} does not exist; there are: {', '.join(('auto', *get_args(Cluster)))}")
    try:
        partitions = ask("sinfo", "--noheader", "--format=%R").split()
        if not partitions:
            raise JobError("sinfo lists no partition")
    except JobError as error:
        if wanted == "slurm":
            raise SlurmError(f"--cluster slurm: {error}; use --cluster local to run on this machine") from None
        is_silent = shutil.which("sinfo") is not None and not any(words in str(error) for words in _NO_CLUSTER)
        if is_silent and not falls_back:
            raise SlurmError(
                f"--cluster auto: this machine belongs to a Slurm cluster that does not answer ({error}); try again "
                "later, or use --cluster local to run on this machine"
            ) from None
        return "local", f"processes on this machine, because {error}"
    return "slurm", f"sinfo answers, partitions {', '.join(sorted(set(partitions)))}"


@dataclass(frozen=True)
class SlurmJob:
    """What Slurm reports of a job.

    Attributes:
        state: Slurm's state (PENDING, RUNNING, COMPLETED, …).
        reason: Slurm's reason for the state, or "".
        restarts: how often the job was requeued.
        nodes: nodes of the job, in Slurm's notation, or "".
        output: the file of the batch script's output, or "" where Slurm does not say it.
        exit_code: exit status of the batch script, as «exit status 1» or «signal SIGKILL»; "" where Slurm says none.
    """

    state: str
    reason: str = ""
    restarts: int = 0
    nodes: str = ""
    output: str = ""
    exit_code: str = ""

    def logs_to(self, folder: Path) -> bool:
        """Whether the job writes its output into this folder, or Slurm does not say where."""
        return not self.output or self.output.startswith(f"{folder}/")


_OUTPUT = re.compile(r" StdOut=(.*?)(?= \w+=|$)", re.MULTILINE)


def check_folder(folder: Path) -> None:
    """Refuse a folder whose jobs Slurm would not show to log there, so that none of them would be found again.

    Raises:
        JobError: Slurm takes a part of the path for something else: `%` for a pattern, a blank and WORD= for a field.
    """
    folder = folder.expanduser().absolute()
    found = re.search(r"%.?|\\| \w+=|\n", str(folder))
    if found:
        raise JobError(
            f"the logs are in {folder}, and Slurm cannot tell a path with {found.group()!r} in it: choose another one"
        )


def slurm_job(job_id: str) -> SlurmJob | None:
    """Ask Slurm how a job stands: the controller first, then the accounting where there is one.

    Returns:
        None when neither knows the job, or no longer.

    Raises:
        JobError: Slurm does not answer.
    """
    try:
        text = ask("scontrol", "show", "job", "--oneliner", job_id)
    except JobError as error:
        if "Invalid job id" not in str(error):
            raise
        return _ask_accounting(job_id)
    output = _OUTPUT.search(text)
    # A value may contain blanks. The fields read as words do not, and they come before every value that could imitate
    # them.
    fields: dict[str, str] = {}
    for word in text.split():
        key, _, value = word.partition("=")
        fields.setdefault(key, value)
    clean = {key: "" if value in ("(null)", "None") else value for key, value in fields.items()}
    return SlurmJob(
        state=clean.get("JobState", "UNKNOWN"),
        reason=clean.get("Reason", ""),
        restarts=int(clean.get("Restarts") or 0),
        nodes=clean.get("NodeList", ""),
        output=output[1].strip() if output else "",
        exit_code=_describe_exit(clean.get("ExitCode", "")),
    )


def _describe_exit(code: str) -> str:
    """Slurm's `STATUS:SIGNAL` in words; srun adds 128 to the signal that has ended a rank."""
    status, _, number = code.partition(":")
    if not (status.isdigit() and number.isdigit()) or code == "0:0":
        return ""
    ended_by = int(number) or max(0, int(status) - 128)
    if ended_by in {known.value for known in signal.Signals}:
        return f"signal {signal.Signals(ended_by).name}"
    return f"exit status {status}"


def own_job(folder: Path, job_id: str) -> SlurmJob | None:
    """Ask Slurm how a job of a folder stands; as `slurm_job`, which raises the same.

    Returns:
        None also where Slurm has given the job's old id to another job, which logs elsewhere.
    """
    job = slurm_job(job_id)
    return job if job is not None and job.logs_to(folder) else None


def _ask_accounting(job_id: str) -> SlurmJob | None:
    if shutil.which("sacct") is None:
        return None
    try:
        rows = ask("sacct", "-X", "-n", "-P", "-o", "State,NodeList,ExitCode", "-j", job_id).splitlines()
    except JobError:
        return None
    if not rows:
        return None
    state, nodes, code = (*rows[-1].split("|"), "", "")[:3]
    # The state may read "CANCELLED by 1000".
    return SlurmJob(state=state.split()[0] if state else "UNKNOWN", nodes=nodes, exit_code=_describe_exit(code))
