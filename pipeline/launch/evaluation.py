"""`--evaluate job`: the resources of the jobs that evaluate checkpoints, and the launcher's part in their end."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from jobs import Cluster, JobError, Outcome, Resources, SlurmError, fit_resources, node_groups, with_cores
from pipeline.launch.options import LaunchError, LaunchOptions
from pipeline.run.config import read_config
from pipeline.run.evaluations import awaiting
from pipeline.weights.card import is_exported

_NOT_FOR_EVALUATIONS = ("dependency", "exclusive", "gres", "nodefile", "nodelist")
"""Options of sbatch that the training's job keeps to itself."""


def evaluation_resources(
    options: LaunchOptions, resources: Resources, cluster: Cluster, workers: int
) -> Resources | None:
    """Return the resources of an evaluation job: a node with as many processes as GPUs, else those of the training.

    Args:
        options: the flags.
        resources: of the training.
        cluster: where it runs.
        workers: loader processes of each rank.

    Returns:
        None: the training evaluates its checkpoints itself.

    Raises:
        LaunchError: a flag of evaluation jobs is given, and there are none, or the cluster lacks their resources.
        JobError: the cluster does not answer.
    """
    flags = {
        "--evaluate-gpus": options.evaluate_gpus,
        "--evaluate-partition": options.evaluate_partition,
        "--evaluate-timeout-min": options.evaluate_timeout_min,
    }
    given = [flag for flag, value in flags.items() if value is not None]
    if options.evaluate == "inline":
        if given:
            raise LaunchError(f"{given[0]} is for evaluation jobs: add --evaluate job, or leave it out")
        return None
    if cluster != "slurm" and options.evaluate_partition is not None:
        raise LaunchError("--evaluate-partition is for Slurm, and this launch uses none: leave it out")
    gpus = options.evaluate_gpus
    if gpus is None:
        gpus = 1 if resources.gpus_per_node else resources.gpus_per_node
    processes = max(1, gpus or 0)
    share = processes / resources.processes_per_node
    asked = options.resources
    wanted = dataclasses.replace(
        resources,
        nodes=1,
        gpus_per_node=gpus,
        tasks_per_node=processes,
        cpus_per_task=asked.cpus_per_task,
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


def evaluation_facts(name: str, resources: Resources | None, cluster: Cluster) -> dict[str, Any] | None:
    """Return what `config.json` holds of evaluation jobs; None: there are none."""
    if resources is None:
        return None
    where = "slurm" if cluster == "slurm" else "local"
    return {"cluster": where, "name": f"{name}-evaluate", "resources": dataclasses.asdict(resources)}


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
