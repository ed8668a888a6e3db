"""Many tasks as one job array: one entry in the queue, as many at a time as wanted, each requeued on its own."""

from collections.abc import Sequence
from pathlib import Path

from jobs.errors import JobError
from jobs.folders import private_directory
from jobs.job import Job
from jobs.partitions import fit, node_groups
from jobs.resources import Resources
from jobs.snapshot import Code
from jobs.submission import Submission
from jobs.submit import own_root, submit_privately, working_job
from jobs.task import Task


def submit_array(
    tasks: Sequence[Task],
    *,
    homes: Sequence[Path],
    folder: Path,
    resources: Resources,
    name: str,
    code: Code | None = None,
    at_once: int = 256,
) -> list[Submission]:
    """Submit every task as one element of a Slurm job array, each with the same resources.

    Args:
        tasks: picklable, as for `submit`.
        homes: a folder for each task, by which `attach` finds its element again.
        folder: for the scripts, pickles and logs of them all.
        resources: what each element asks for.
        name: of the array, in the queue.
        code: what the processes import; None means the packages of this process, wherever they are.
        at_once: how many elements run at the same time.

    Returns:
        A submission for each task, in their order.

    Raises:
        JobError: as for `submit`, or no tasks.
    """
    from jobs.clusters import SlurmSubmission
    from jobs.executors import build_executor

    if not tasks or len(tasks) != len(homes):
        raise JobError(f"an array needs a folder for each of its tasks: {len(tasks)} tasks, {len(homes)} folders")
    resources.check()
    resources = fit(resources, node_groups())
    folder = private_directory(folder)
    homes = [private_directory(home) for home in homes]
    for home in homes:
        working = working_job(home)
        if working is not None:
            raise JobError(f"job {working.job_id} still works in {home}; scancel {working.job_id} ends it")
    code = code or Code(root=own_root())
    executor = build_executor("slurm", folder, resources, name, code=code.root)
    executor.update_parameters(array_parallelism=at_once)
    elements = [Job(task, folder, resources, code) for task in tasks]
    submissions: list[Submission] = []
    for home, element in zip(homes, submit_privately(lambda: executor.submit_array(elements)), strict=True):
        submission = SlurmSubmission(folder, element.job_id, resources.world_size)
        submission.remember(home)
        submissions.append(submission)
    return submissions
