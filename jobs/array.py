"""Many tasks as one job array: one entry in the queue, as many at a time as wanted, each requeued on its own."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jobs.errors import JobError
from jobs.folders import private_directory
from jobs.job import Job
from jobs.partitions import fit, node_groups
from jobs.resources import Resources
from jobs.snapshot import Code
from jobs.submission import Submission, Update
from jobs.submit import own_root, submit_privately, working_job
from jobs.task import Outcome, Task


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
        A submission for each task, in their order; where Slurm still has the job that was last submitted for a home,
        that one, and the array holds the others.

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
    submissions = {home: former for home in homes if (former := working_job(home)) is not None}
    code = code or Code(root=own_root())
    executor = build_executor("slurm", folder, resources, name, code=code.root)
    executor.update_parameters(array_parallelism=at_once)
    new = {home: Job(task, folder, resources, code, home) for home, task in zip(homes, tasks, strict=True)}
    new = {home: job for home, job in new.items() if home not in submissions}
    submitted = submit_privately(lambda: executor.submit_array(list(new.values()))) if new else []
    for home, element in zip(new, submitted, strict=True):
        submissions[home] = SlurmSubmission(folder, element.job_id, resources.world_size)
        submissions[home].remember(home)
    return [submissions[home] for home in homes]


def wait_all(
    submissions: Sequence[Submission], poll_s: float = 1.0, on_update: Callable[[int, Update], None] | None = None
) -> list[Outcome]:
    """Follow jobs to their ends, asking about one of them at a time, so that many ask no more often than one.

    Args:
        submissions: of jobs that go on without a watcher.
        poll_s: seconds between two questions.
        on_update: called with the place of a job in `submissions`, and how it stands.

    Returns:
        What came of each, as `Submission.wait` says it; DETACHED of those that were not over at a Ctrl-C.
    """
    outcomes: dict[int, Outcome] = {}
    try:
        while len(outcomes) < len(submissions):
            for number in [number for number in range(len(submissions)) if number not in outcomes]:
                update, outcome = submissions[number].look()
                if on_update is not None:
                    on_update(number, update)
                if outcome is not None:
                    outcomes[number] = outcome
                time.sleep(poll_s)
    except KeyboardInterrupt:
        pass
    return [outcomes.get(number, Outcome.DETACHED) for number in range(len(submissions))]
