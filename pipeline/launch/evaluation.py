"""`--evaluate job` and `--evaluate allocation`: who evaluates with which resources, and the launcher's part in the end.

In the allocation a few GPUs of each node are kept from the training. A separate job takes as many of another node.
"""

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jobs import (
    Cluster,
    JobError,
    Outcome,
    Resources,
    SlurmError,
    Submission,
    attach,
    fit_resources,
    forget_submission,
    node_groups,
    with_cores,
)
from pipeline.config.schema import ConfigError
from pipeline.launch.options import LaunchError, LaunchOptions
from pipeline.run.config import read_config
from pipeline.run.evaluations import awaiting
from pipeline.run.files import LOGS
from pipeline.weights.card import is_exported

_NOT_FOR_EVALUATIONS = ("dependency", "exclusive", "gres", "nodefile", "nodelist")
"""Options of sbatch that the training's job keeps to itself."""


def refuse_unused_flags(options: LaunchOptions, cluster: Cluster) -> None:
    """Refuse a flag that the chosen way to evaluate does not use.

    Raises:
        LaunchError: such a flag is given.
    """
    of_jobs = {
        "--evaluate-partition": options.evaluate_partition,
        "--evaluate-timeout-min": options.evaluate_timeout_min,
    }
    of_all = {"--evaluate-gpus": options.evaluate_gpus}
    if options.evaluate == "inline":
        if given := _given(of_all):
            raise LaunchError(f"{given} is for evaluations beside the training: add --evaluate job, or leave it out")
        if given := _given(of_jobs):
            raise LaunchError(f"{given} is for evaluation jobs: add --evaluate job, or leave it out")
    elif options.evaluate == "allocation":
        if given := _given(of_jobs):
            raise LaunchError(f"{given} is for --evaluate job; in the allocation there is no other job: leave it out")
    elif cluster != "slurm" and options.evaluate_partition is not None:
        raise LaunchError("--evaluate-partition is for Slurm, and this launch uses none: leave it out")
    if options.evaluate_gpus is not None and options.evaluate_gpus < 0:
        raise LaunchError(f"--evaluate-gpus {options.evaluate_gpus} must be at least 0; with 0, CPU cores evaluate")


def _given(flags: Mapping[str, object]) -> str | None:
    return next((flag for flag, value in flags.items() if value is not None), None)


def evaluation_gpus(options: LaunchOptions, resources: Resources) -> int:
    """Return the GPUs that evaluate beside the training: as told, or one where the training has some."""
    return min(1, resources.gpus_per_node or 0) if options.evaluate_gpus is None else options.evaluate_gpus


def keep_gpus(options: LaunchOptions, resources: Resources) -> Resources:
    """Return the resources of a training: with `--evaluate allocation`, a few GPUs of each node have no rank.

    Args:
        options: the flags.
        resources: with the GPUs that the cluster has.

    Raises:
        LaunchError: the training and the evaluation together need more GPUs than a node of the job has.
    """
    if options.evaluate != "allocation":
        return resources
    kept, gpus, tasks = evaluation_gpus(options, resources), resources.gpus_per_node or 0, resources.tasks_per_node
    if kept == 0:
        return resources
    if gpus == 0:
        raise LaunchError(
            f"--evaluate-gpus {kept}: the job has no GPUs: add --gpus-per-node; with 0, CPU cores evaluate"
        )
    ways = "lower --evaluate-gpus (with 0, CPU cores evaluate), or take --evaluate job, which has GPUs of its own"
    if tasks is None and kept >= gpus:
        raise LaunchError(f"--evaluate-gpus {kept} leaves the training none of --gpus-per-node {gpus}: {ways}")
    if tasks is not None and tasks + kept > gpus:
        raise LaunchError(
            f"--tasks-per-node {tasks} and --evaluate-gpus {kept} together are more than --gpus-per-node {gpus}: {ways}"
        )
    return dataclasses.replace(resources, tasks_per_node=gpus - kept if tasks is None else tasks)


def refuse_unnamed_gpus(options: LaunchOptions, resources: Resources, found: int | None) -> None:
    """Refuse to guess in the allocation which of the GPUs that nodes have are the job's: CPU cores would evaluate.

    Args:
        options: the flags.
        resources: of the training.
        found: GPUs of a node.

    Raises:
        LaunchError: the flags name a number of ranks and no number of GPUs.
    """
    if options.evaluate == "allocation" and options.evaluate_gpus is None and resources.gpus_per_node is None and found:
        raise LaunchError(
            f"--evaluate allocation: nodes have {found} GPUs, and the flags do not say how many the job gets: add "
            f"--gpus-per-node {found}, or --evaluate-gpus 0 if CPU cores are to evaluate"
        )


def kept_gpus_hint(options: LaunchOptions, resources: Resources, check: Callable[[int], None]) -> str:
    """Return what to add to the error of a training that would suit fewer ranks; "" if kept GPUs have no part in it.

    Args:
        options: the flags.
        resources: of the training.
        check: raises ConfigError where a number of ranks does not suit the training.
    """
    kept, gpus = evaluation_gpus(options, resources), resources.gpus_per_node or 0
    if options.evaluate != "allocation" or kept == 0 or options.resources.tasks_per_node is not None:
        return ""
    for more in range(kept + 1, gpus):
        with contextlib.suppress(ConfigError):
            check(resources.nodes * (gpus - more))
            return (
                f"; --evaluate allocation keeps {kept} of {gpus} GPUs of each node from the training: --evaluate-gpus "
                f"{more} would fit as well"
            )
    return ""


def cores_of_rank(options: LaunchOptions, resources: Resources, workers: int) -> int:
    """Return how many busy processes there are for each rank, itself included.

    Args:
        options: the flags.
        resources: of the training.
        workers: loader processes of each rank, and of each process that evaluates.
    """
    if options.evaluate != "allocation":
        return 1 + workers
    ranks, others = resources.processes_per_node, max(1, evaluation_gpus(options, resources))
    return math.ceil((ranks + others) * (1 + workers) / ranks)


def warn_of_idle_gpus(options: LaunchOptions, resources: Resources) -> None:
    """Say on stderr how many GPUs neither train nor evaluate, since only rank 0's node evaluates."""
    idle = (resources.nodes - 1) * evaluation_gpus(options, resources)
    if options.evaluate == "allocation" and idle:
        print(
            f"warning: {idle} of the job's GPUs will not be used: each node keeps as many for the evaluation, and only "
            "rank 0's node evaluates; --evaluate job takes GPUs only for as long as an evaluation lasts",
            file=sys.stderr,
        )


def evaluation_resources(
    options: LaunchOptions, resources: Resources, cluster: Cluster, workers: int
) -> Resources | None:
    """Return the resources of an evaluation job: a node with as many processes as GPUs, else those of the training.

    What is evaluated in the training's allocation has as many processes and GPUs, and what is left after it gets them
    in a job of its own.

    Args:
        options: the flags.
        resources: of the training.
        cluster: where it runs.
        workers: loader processes of each rank.

    Returns:
        None: the training evaluates its checkpoints itself.

    Raises:
        LaunchError: the cluster lacks these resources.
        JobError: the cluster does not answer.
    """
    if options.evaluate == "inline":
        return None
    gpus: int | None = evaluation_gpus(options, resources)
    if options.evaluate == "job" and options.evaluate_gpus is None and resources.gpus_per_node is None:
        # None are asked for, and none are hidden.
        gpus = None
    processes = max(1, gpus or 0)
    # No more of a node than the training takes.
    ranks, asked = resources.processes_per_node, options.resources
    share = min(1.0, processes / ranks)
    cores = None if asked.cpus_per_task is None else max(1, int(asked.cpus_per_task * min(1.0, ranks / processes)))
    wanted = dataclasses.replace(
        resources,
        nodes=1,
        gpus_per_node=gpus,
        tasks_per_node=processes,
        cpus_per_task=cores,
        mem_gb=None if asked.mem_gb is None else asked.mem_gb * share,
        timeout_min=options.evaluate_timeout_min or asked.timeout_min,
        partition=options.evaluate_partition or asked.partition,
        slurm=tuple(option for option in asked.slurm if not option.lstrip("-").startswith(_NOT_FOR_EVALUATIONS)),
        chain=None if asked.chain is None else 1,
    )
    try:
        wanted.check()
        if cluster == "slurm":
            groups = node_groups()
            wanted = with_cores(fit_resources(wanted, groups), groups, 1 + workers)
    except SlurmError:
        # In a dry run Slurm need not answer.
        if not options.dry_run:
            raise
    except JobError as error:
        raise LaunchError(f"evaluation jobs: {error}") from None
    return wanted


def evaluation_facts(
    name: str, resources: Resources | None, cluster: Cluster, *, in_allocation: bool
) -> dict[str, Any] | None:
    """Return what `config.json` holds of evaluations beside the training; None: it evaluates itself.

    Args:
        name: of the training's job.
        resources: of an evaluation job.
        cluster: where the training runs.
        in_allocation: whether the training's allocation evaluates, as long as the training lasts.
    """
    if resources is None:
        return None
    return {
        "cluster": "slurm" if cluster == "slurm" else "local",
        "in_allocation": in_allocation,
        "name": f"{name}-evaluate",
        "resources": dataclasses.asdict(resources),
    }


def end_waiting_evaluation(run_dir: Path) -> None:
    """Cancel a job that waits to evaluate, if from now on the training's allocation does, which would wait for it.

    Args:
        run_dir: of a run that is to be trained, with its `config.json`.

    Raises:
        JobError: the cluster does not cancel the job.
    """
    from pipeline.train.evaluation_jobs import jobs_folder

    if not (read_config(run_dir).evaluation or {}).get("in_allocation"):
        return
    job = attach(jobs_folder(run_dir))
    if job is not None and job.poll()[0].state == "PENDING":
        job.cancel()
        # One that a user cancels is a wish to have nothing evaluated for a while.
        forget_submission(jobs_folder(run_dir))
        print(f"evaluation job {job.job_id} is cancelled before it has begun: the training's allocation evaluates")


def training_that_evaluates(run_dir: Path) -> Submission | None:
    """Return the training's job if it evaluates in its allocation, and has something left to evaluate."""
    settings = read_config(run_dir).evaluation
    if not (settings or {}).get("in_allocation") or not awaiting(run_dir):
        return None
    with contextlib.suppress(JobError):
        job = attach(run_dir / LOGS)
        if job is not None and job.poll()[1] is None:
            return job
    return None


def will_be_evaluated(run_dir: Path) -> bool:
    """Return whether a job is left that evaluates what awaits it and then registers the model."""
    from pipeline.train.completion import has_evaluation_job

    return has_evaluation_job(run_dir) or training_that_evaluates(run_dir) is not None


def conclude_evaluations(run_dir: Path, *, follow: bool) -> bool:
    """See to the evaluation of a finished run's last checkpoints, and register its model.

    Where no job is left for it, one is submitted; Ctrl-C leaves it in Slurm's queue.

    Args:
        run_dir: of the run.
        follow: whether to wait for its end. A job that would end with this process is followed in any case.

    Returns:
        Whether the run evaluates by jobs, so that nothing else has to register its model.
    """
    if read_config(run_dir).evaluation is None or not is_exported(run_dir):
        return False
    from pipeline.train.completion import complete
    from pipeline.train.evaluation_jobs import EvaluationJobs

    training = training_that_evaluates(run_dir)
    if training is not None:
        steps = ", ".join(map(str, awaiting(run_dir)))
        print(f"step {steps} awaits its evaluation by job {training.job_id}, which has trained it")
        if not follow:
            return True
        if training.wait() is Outcome.DETACHED:
            return True
    jobs = EvaluationJobs(run_dir)
    if awaiting(run_dir) and jobs.submit_if_due() and jobs.submission is not None:
        steps = ", ".join(map(str, awaiting(run_dir)))
        if not follow and jobs.submission.goes_on_alone:
            print(f"step {steps} awaits its evaluation by job {jobs.submission.job_id}")
            return True
        print(f"step {steps} awaits its evaluation: following job {jobs.submission.job_id}")
        shown: list[str] = []

        def show(state: object) -> None:
            if str(state) not in shown[-1:]:
                shown.append(str(state))
                print(f"evaluation job is {state}", flush=True)

        with contextlib.suppress(JobError):
            if jobs.submission.wait(poll_s=1.0, on_update=show) is Outcome.FAILED:
                print(f"error: {jobs.submission.failure()}")
    complete(run_dir)
    return True
