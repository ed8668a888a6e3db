"""Submit a task as a job, follow a submitted job again, or show what would be submitted."""

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from jobs import former_jobs
from jobs.environment import MASTER_SOCKET
from jobs.errors import JobError, SlurmError
from jobs.folder_lock import is_running_locally
from jobs.folders import private_directory
from jobs.interfaces import exported_here
from jobs.job import Job
from jobs.log import log
from jobs.partitions import fit_resources, node_groups
from jobs.resources import Resources
from jobs.slurm import Cluster, check_folder, own_job
from jobs.snapshot import Code
from jobs.submission import Submission
from jobs.submission_file import read_submission
from jobs.task import Task

if TYPE_CHECKING:
    from jobs.executors import Executor

Submitted = TypeVar("Submitted")
_OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "JOBS_LOCAL_", "TORCHELASTIC_")
"""Beginnings of the variables by which Slurm, Submitit, this package and torchrun tell a process its place."""
_OF_A_RANK = {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} | {
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", MASTER_SOCKET)
}
"""The other variables that do so. A user has some that begin alike, such as GROUP_HOME and ROLE_ARN."""


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
        task: picklable callable; only the compute nodes import the modules that it needs.
        cluster: cluster from `choose_cluster`.
        folder: folder of the scripts, pickles, logs and attempt log, on a file system that all nodes share.
        resources: resources of the job.
        name: name of the job in the queue.
        code: code from `take_snapshot`; None runs the packages that this process has imported, where they are.
        attached: on the local cluster, whether the processes stop when this process ends, also when it is killed.

    Returns:
        The submission, without waiting for the job. If Slurm still has the job that was last submitted from `folder`,
        that job is returned, so that a second launch follows it.

    Raises:
        JobError: the resources are wrong, the folder belongs to another user, a job still runs there, or the cluster
            refuses the job.
    """
    from jobs.executors import build_executor
    from jobs.local_submission import DebugSubmission, LocalSubmission
    from jobs.slurm_submission import SlurmSubmission

    resources.check()
    if cluster == "slurm":
        if is_running_locally(folder):
            raise JobError(
                f"processes of a launch on this machine still run in {folder}; wait until they end, stop them, or "
                "choose another --run-dir"
            )
        check_folder(folder)
        resources = fit_resources(resources, node_groups())
    folder = private_directory(folder)
    # Two jobs that write the same checkpoints would destroy them.
    unfinished = unfinished_job(folder)
    if unfinished is not None and cluster == "slurm":
        ids = " ".join(unfinished.job_ids)
        log(f"job {unfinished.job_id} of this run is still in the queue: following it (scancel {ids} ends it)")
        return unfinished
    if unfinished is not None:
        ids = " ".join(unfinished.job_ids)
        raise JobError(f"job {unfinished.job_id} on Slurm still uses {folder}; scancel {ids} ends it")
    _end_former_chain(folder)
    former = former_jobs.traces(folder)
    code = code or Code(root=package_root())
    job = Job(task, folder, resources, code)
    executor = build_executor(cluster, folder, resources, name, code=code.root, attached=attached)
    if cluster == "slurm" and resources.chain is not None:
        return _submit_chain(executor, job, folder, resources, former)
    submitted = call_submitit(lambda: executor.submit(job), is_slurm=cluster == "slurm")
    former_jobs.set_aside(former, submitted.job_id)
    if cluster == "debug":
        return DebugSubmission(folder, submitted.job_id, submitted)
    if cluster == "local":
        process = getattr(submitted, "_process")  # noqa: B009 - only Submitit's local job has it
        submission: Submission = LocalSubmission(folder, submitted.job_id, resources.world_size, process)
    else:
        submission = SlurmSubmission(folder, submitted.job_id, resources.world_size)
    submission.remember()
    return submission


def _end_former_chain(folder: Path) -> None:
    """Cancel what is left in the queue of a former chain of this folder, so that it does not start beside a new job."""
    from jobs.chain_submission import ChainSubmission

    former = attach(folder)
    if isinstance(former, ChainSubmission):
        former.update()
        former.end_rest()


def _submit_chain(executor: "Executor", job: Job, folder: Path, resources: Resources, former: set[Path]) -> Submission:
    """Submit a job several times, each to start after those before it.

    Args:
        executor: of the cluster.
        job: the job.
        folder: folder of the job.
        resources: resources of the job.
        former: what former jobs have left in the folder.

    Raises:
        JobError: the cluster refuses one of the jobs; those before it are cancelled.
    """
    from jobs.chain_submission import ChainSubmission

    ids: list[str] = []
    submission = None
    for _ in range(resources.chain or 1):
        if ids:
            # After all of them: one that is cancelled while it waits must not let the next start beside the first.
            executor.update_parameters(dependency=f"afterany:{':'.join(ids)}")
        try:
            ids.append(call_submitit(lambda: executor.submit(job)).job_id)
        except JobError:
            if submission is not None:
                submission.cancel()
            raise
        former_jobs.set_aside(former, ids[-1])
        submission = ChainSubmission(folder, ids, resources.world_size)
        submission.remember(is_chain=True)
    assert submission is not None
    return submission


def call_submitit(submit_job: Callable[[], Submitted], *, is_slurm: bool = True) -> Submitted:
    """Call Submitit so that its files are private, without the variables of an enclosing job, and explain its errors.

    Args:
        submit_job: calls Submitit.
        is_slurm: whether the job is submitted to Slurm.

    Raises:
        JobError: the cluster refuses the job, or its commands are missing.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    previous = os.umask(0o077)
    try:
        with _without_job_variables(is_slurm=is_slurm):
            return submit_job()
    except FileNotFoundError as error:
        raise JobError(f"{error.filename} is not installed on this machine; use --cluster local") from None
    except (FailedSubmissionError, FailedJobError) as error:
        lines = str(error).splitlines()
        errors = [line for line in lines if "error:" in line or line.startswith("sbatch:")] or lines[-1:]
        raise JobError("sbatch refuses the job: " + "; ".join(errors)) from None
    finally:
        os.umask(previous)


@contextlib.contextmanager
def _without_job_variables(*, is_slurm: bool) -> Iterator[None]:
    """Remove an enclosing job's variables for a while: a job submitted from that job would take them for its own."""
    is_slurm = is_slurm and "SLURM_JOB_ID" in os.environ
    keep = {"SLURM_CONF", "SLURM_CLUSTERS"}
    own = _OF_A_RANK | exported_here()
    if is_slurm:
        # Slurm gives them to a job with GPUs, and one without would look for those of the enclosing job.
        own |= {"CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES"}
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if name in own or (name.startswith(_OF_A_JOB) and name not in keep)
    }
    try:
        yield
    finally:
        os.environ.update(hidden)


def unfinished_job(folder: Path) -> Submission | None:
    """The job that was last submitted from a folder, if it is pending (held, too) or running in Slurm.

    Raises:
        JobError: Slurm does not answer, or it is not known which job that was.
    """
    try:
        previous = attach(folder)
    except JobError as error:
        raise JobError(
            f"{error}: if no job of this run is in a queue (squeue --me), remove that file and launch again"
        ) from None
    if previous is None:
        return None
    try:
        # First, since a chain moves to the job that has the work: Slurm may have forgotten those before it.
        update = previous.update()
        job = own_job(previous.folder, previous.job_id)
        # A job that Slurm holds counts as over, and yet starts when it is released.
        is_queued = job is not None and (job.state == "PENDING" or not previous.is_over(update))
        return previous if is_queued else None
    except SlurmError as error:
        raise JobError(f"cannot tell whether job {previous.job_id} still uses {folder}: {error}") from None


def attach(folder: Path) -> Submission | None:
    """The Slurm job that was last submitted from a folder, to follow it again.

    Returns:
        None where there was no job, or where it ran on the local cluster and so ended with its launcher.

    Raises:
        JobError: that cannot be read.
    """
    from jobs.chain_submission import ChainSubmission
    from jobs.slurm_submission import SlurmSubmission

    submitted = read_submission(folder)
    if submitted is None or submitted.cluster != "slurm":
        return None
    if submitted.chain:
        return ChainSubmission(submitted.folder, submitted.chain, submitted.world_size)
    return SlurmSubmission(submitted.folder, submitted.job_id, submitted.world_size)


def dry_run(
    *,
    cluster: Cluster,
    folder: Path,
    resources: Resources,
    name: str,
    code: Code | None = None,
    elements: int = 1,
) -> str:
    """Show what `submit` would submit, or `submit_array` for several elements, built by the same code.

    Nothing is written and Slurm is not asked. Where there is a Slurm, call `fit_resources` first.

    Returns:
        The sbatch script, or a description of the processes that would start on this machine.

    Raises:
        JobError: the resources are wrong.
    """
    from jobs.executors import Slurm, build_executor, rank_command

    resources.check()
    if cluster == "debug":
        return "one process: this one\n"
    if cluster == "local":
        command = rank_command(shlex.quote(sys.executable), folder.expanduser().absolute())
        limit = f", at most {resources.timeout_min} min" if resources.timeout_min else ""
        times = f", {elements} times, one after the other" if elements > 1 else ""
        return f"{describe_local(resources)}{limit}{times}, each:\n{command}\n"
    check_folder(folder)
    executor = build_executor(cluster, folder, resources, name, code=code.root if code else package_root())
    assert isinstance(executor, Slurm)
    following = "" if resources.chain is None or resources.chain < 2 else _describe_chain(resources.chain)
    return executor.script(elements) + following


def _describe_chain(length: int) -> str:
    """What else is submitted for a chain of this length."""
    jobs = "a second job" if length == 2 else f"{length - 1} more jobs"
    return f"\n\n# the same script again as {jobs}, each with --dependency=afterany: and those before it\n"


def package_root() -> Path:
    """The folder with the packages that this process has imported."""
    return Path(__file__).resolve().parents[1]


def describe_local(resources: Resources) -> str:
    """Describe the processes that the local cluster starts for these resources."""
    processes = f"{resources.world_size} process{'es' if resources.world_size > 1 else ''} on this machine"
    if resources.nodes > 1:
        return f"{processes} stand for {resources.nodes} nodes of {resources.processes_per_node}"
    return processes
