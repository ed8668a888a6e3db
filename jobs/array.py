"""Many tasks as one Slurm job array: one entry in the queue; each element is requeued on its own."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs import former_jobs
from jobs.errors import JobError
from jobs.folders import private_directory
from jobs.job import Job
from jobs.partitions import fit_resources, node_groups
from jobs.resources import Resources
from jobs.slurm import check_folder
from jobs.snapshot import Code
from jobs.submission import Submission, Update
from jobs.submit import call_submitit, package_root, unfinished_job
from jobs.task import Outcome, Task


def submit_array(
    tasks: Sequence[Task],
    *,
    task_folders: Sequence[Path],
    folder: Path,
    resources: Resources,
    name: str,
    code: Code | None = None,
    at_once: int = 256,
) -> list[Submission]:
    """Submit every task as one element of a Slurm job array, each with the same resources.

    Args:
        tasks: picklable callables, as for `submit`.
        task_folders: one folder for each task, from which `attach` finds the task's element again.
        folder: folder of the scripts, pickles and logs of all elements.
        resources: resources of each element.
        name: name of the array in the queue.
        code: code from `take_snapshot`; None runs the packages that this process has imported, where they are.
        at_once: maximum number of elements that run at the same time.

    Returns:
        A submission for each task, in order. If Slurm still has the job that was last submitted for a task, that job is
        returned and is no element of the new array.

    Raises:
        JobError: as for `submit`, or there are no tasks.
    """
    from jobs.executors import build_executor
    from jobs.slurm_submission import SlurmSubmission

    if not tasks or len(tasks) != len(task_folders):
        raise JobError(
            f"an array needs one folder for each task, but got {len(tasks)} tasks and {len(task_folders)} folders"
        )
    if resources.chain is not None:
        raise JobError("--chain is for one run, and the runs of a sweep are one job array: leave one of them out")
    resources.check()
    check_folder(folder)
    resources = fit_resources(resources, node_groups())
    folder = private_directory(folder)
    task_folders = [private_directory(task_folder) for task_folder in task_folders]
    submissions = {
        task_folder: previous for task_folder in task_folders if (previous := unfinished_job(task_folder)) is not None
    }
    code = code or Code(root=package_root())
    executor = build_executor("slurm", folder, resources, name, code=code.root)
    executor.update_parameters(array_parallelism=at_once)
    new = {
        task_folder: Job(task, folder, resources, code, task_folder)
        for task_folder, task in zip(task_folders, tasks, strict=True)
    }
    new = {task_folder: job for task_folder, job in new.items() if task_folder not in submissions}
    former = former_jobs.traces(folder)
    submitted = call_submitit(lambda: executor.submit_array(list(new.values()))) if new else []
    for task_folder, element in zip(new, submitted, strict=True):
        former_jobs.set_aside(former, element.job_id)
        submissions[task_folder] = SlurmSubmission(folder, element.job_id, resources.world_size)
        submissions[task_folder].remember(task_folder)
    return [submissions[task_folder] for task_folder in task_folders]


def wait_all(
    submissions: Sequence[Submission], poll_s: float = 1.0, on_update: Callable[[int, Update], None] | None = None
) -> list[Outcome]:
    """Follow jobs to their ends. One job is polled at a time, so that many jobs cause no more queries than one.

    Args:
        submissions: submissions of jobs that go on without this process.
        poll_s: seconds between two queries.
        on_update: called with the index of a job in `submissions`, and how the job stands.

    Returns:
        The outcome of each job, as from `Submission.wait`; DETACHED for jobs that were not over at a Ctrl-C.
    """
    outcomes: dict[int, Outcome] = {}
    try:
        while len(outcomes) < len(submissions):
            for number in [number for number in range(len(submissions)) if number not in outcomes]:
                update, outcome = submissions[number].poll()
                if on_update is not None:
                    on_update(number, update)
                if outcome is not None:
                    outcomes[number] = outcome
                time.sleep(poll_s)
    except KeyboardInterrupt:
        pass
    return [outcomes.get(number, Outcome.DETACHED) for number in range(len(submissions))]
