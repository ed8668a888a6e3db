"""Submit a task as a job, come back to one, or show what would be submitted."""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from jobs.cluster import Cluster, slurm_job
from jobs.errors import JobError, NoAnswer
from jobs.folders import private_directory
from jobs.job import Job
from jobs.partitions import fit, node_groups
from jobs.resources import Resources
from jobs.snapshot import Code
from jobs.submission import LAST, Submission
from jobs.task import Task

Submitted = TypeVar("Submitted")


def submit(
    task: Task,
    *,
    cluster: Cluster,
    folder: Path,
    resources: Resources,
    name: str,
    code: Code | None = None,
    attached: bool = True,
) -> Submission:
    """Submit `task` to run in every process of one job.

    Args:
        task: picklable; what it imports is loaded on the compute nodes only.
        cluster: as `choose_cluster` settled it.
        folder: for scripts, pickles, logs and the book of attempts; on a file system that all nodes see.
        resources: what to ask for.
        name: of the job, in the queue.
        code: what the processes import, from `settle`; None means the packages of this process, wherever they are.
        attached: on the local cluster, whether the processes stop when this one ends, however it ends.

    Returns:
        The submission; nothing has been waited for. Where Slurm still has the job that was last submitted from
        `folder`, that one, so that the same launch comes back to its job.

    Raises:
        JobError: wrong resources, a folder of somebody else, a job that still works there, or a cluster that refuses.
    """
    from jobs.clusters import DebugSubmission, LocalSubmission, SlurmSubmission
    from jobs.executors import build_executor

    resources.check()
    if cluster == "slurm":
        resources = fit(resources, node_groups())
    folder = private_directory(folder)
    # Two jobs that write the same checkpoints destroy them.
    working = working_job(folder)
    if working is not None and cluster == "slurm":
        print(f"job {working.job_id} of this run is still there: following it (scancel {working.job_id} ends it)")
        return working
    if working is not None:
        raise JobError(f"job {working.job_id} on Slurm still works in {folder}; scancel {working.job_id} ends it")
    code = code or Code(root=own_root())
    job = Job(task, folder, resources, code)
    executor = build_executor(cluster, folder, resources, name, code=code.root, attached=attached)
    submitted = submit_privately(lambda: executor.submit(job))
    if cluster == "debug":
        return DebugSubmission(folder, submitted.job_id, submitted)
    if cluster == "local":
        process = getattr(submitted, "_process")  # noqa: B009 - of Submitit's local job alone
        submission: Submission = LocalSubmission(folder, submitted.job_id, resources.world_size, process)
    else:
        submission = SlurmSubmission(folder, submitted.job_id, resources.world_size)
    submission.remember()
    return submission


def submit_privately(hand_over: Callable[[], Submitted]) -> Submitted:
    """Call Submitit with files closed to others and no trace of an enclosing job, and put its errors into words.

    Raises:
        JobError: the cluster refuses, or its commands are missing.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    former = os.umask(0o077)
    try:
        with _outside_any_job():
            return hand_over()
    except FileNotFoundError as error:
        raise JobError(f"{error.filename} is not installed on this machine; use --cluster local") from None
    except (FailedSubmissionError, FailedJobError) as error:
        lines = str(error).splitlines()
        words = [line for line in lines if "error:" in line or line.startswith("sbatch:")] or lines[-1:]
        raise JobError("sbatch refuses the job: " + "; ".join(words)) from None
    finally:
        os.umask(former)


@contextlib.contextmanager
def _outside_any_job() -> Iterator[None]:
    """Hide what an enclosing job says of itself: a job submitted from a job would take it for its own."""
    keep = {"SLURM_CONF", "SLURM_CLUSTERS"}
    own = {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name in own or (name.startswith(("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "JOBS_")) and name not in keep)
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


def working_job(folder: Path) -> Submission | None:
    """The job that was last submitted from a folder, if Slurm still has it waiting or running.

    Raises:
        JobError: Slurm does not say.
    """
    former = attach(folder)
    if former is None:
        return None
    try:
        job = slurm_job(former.job_id)
        return None if job is None or former.is_over(former.update()) else former
    except NoAnswer as error:
        raise JobError(f"cannot tell whether job {former.job_id} still works in {folder}: {error}") from None


def attach(folder: Path) -> Submission | None:
    """The Slurm job that was last submitted from a folder, to follow it again.

    Returns:
        None where there was none, or where it ran on the local cluster and so ended with its launcher.
    """
    from jobs.clusters import SlurmSubmission

    try:
        words = json.loads((folder / LAST).read_text())
    except (OSError, ValueError):
        return None
    if words.get("cluster") != "slurm":
        return None
    return SlurmSubmission(Path(words["folder"]), str(words["job_id"]), int(words["world_size"]))


def dry_run(
    *,
    cluster: Cluster,
    folder: Path,
    resources: Resources,
    name: str,
    code: Code | None = None,
    elements: int = 1,
) -> str:
    """What `submit` would hand over, or `submit_array` for several elements, made by the same code.

    Nothing is written, and no Slurm is needed or asked: `fit` the resources first where there is one.

    Returns:
        The sbatch script, or a sentence about the processes that would start here.

    Raises:
        JobError: wrong resources.
    """
    from jobs.executors import Slurm, build_executor, rank_command

    resources.check()
    if cluster == "debug":
        return "one process: this one\n"
    if cluster == "local":
        command = rank_command(shlex.quote(sys.executable), folder.expanduser().absolute())
        limit = f", at most {resources.timeout_min} min" if resources.timeout_min else ""
        times = f", {elements} times, one after the other" if elements > 1 else ""
        return f"{local_words(resources)}{limit}{times}, each:\n{command}\n"
    executor = build_executor(cluster, folder, resources, name, code=code.root if code else own_root())
    assert isinstance(executor, Slurm)
    return executor.script(elements)


def own_root() -> Path:
    """The folder that holds the packages of this process."""
    return Path(__file__).resolve().parents[1]


def local_words(resources: Resources) -> str:
    """A sentence on what the local cluster makes of the resources."""
    processes = f"{resources.world_size} process{'es' if resources.world_size > 1 else ''} on this machine"
    if resources.nodes > 1:
        return f"{processes} stand for {resources.nodes} nodes of {resources.processes_per_node}"
    return processes
