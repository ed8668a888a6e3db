"""One training of a launch: its folder, its job, and how far it has come."""

import dataclasses
import sys
from pathlib import Path

from jobs import Submission, local_words, notices, submit
from pipeline import run_dir as run_directory
from pipeline.digits import prepare_digits
from pipeline.launch_options import LaunchError
from pipeline.launch_plan import Dataset, Plan, PlannedRun, check_shards, check_weights
from pipeline.notice import Needs, warnings
from pipeline.schedule import build_schedule
from pipeline.task import TrainTask
from pipeline.tracking_state import tracking_uri_of
from pipeline.uncommitted import keep_changes


def prepare_run(plan: Plan, run: PlannedRun) -> tuple[Dataset, int]:
    """Look at the data, make the run's folder, warn of what was measured in it.

    Returns:
        What the data holds, and the steps of the training.
    """
    if not (run.run_dir / "config.json").exists():
        check_weights(run.config)
    else:
        try:
            tracking_uri_of(run.run_dir)
        except ValueError as error:
            raise LaunchError(str(error)) from error
    if plan.options.recipe == "demo":
        prepare_digits(Path(run.config.data.shards))
    dataset = check_shards(run.config)
    total_steps = build_schedule(run.config, dataset.num_samples).total_steps
    facts = {"dataset": dataclasses.asdict(dataset), "total_steps": total_steps}
    run_directory.prepare(run.run_dir, run.config, plan.extra() | facts)
    keep_changes(Path(__file__).resolve().parents[1], run.run_dir)
    for words in warnings(Needs.of_run(run.run_dir), notices(plan.cluster, plan.resources)):
        print(f"warning: {words}", file=sys.stderr)
    return dataset, total_steps


def submit_run(plan: Plan, run: PlannedRun) -> Submission:
    """Submit one training as a job of its own."""
    return submit(
        TrainTask(run.run_dir),
        cluster=plan.cluster,
        folder=run.run_dir / "submitit",
        resources=plan.resources,
        name=plan.name,
        code=plan.code(copy=True),
        attached=plan.options.wait,
    )


def cluster_words(plan: Plan) -> str:
    """Where the processes will run, and how many."""
    count = plan.resources.world_size
    processes = f"{count} process{'es' if count > 1 else ''}"
    processes = local_words(plan.resources) if plan.cluster == "local" else processes
    return f"cluster: {plan.cluster} ({plan.why}); {processes}"


def is_exported(run_dir: Path) -> bool:
    """Whether the training has reached its end."""
    return (run_dir / "export" / "model.json").exists()


def is_registered(run_dir: Path) -> bool:
    """Whether the model is in the registry."""
    return (run_dir / "registered.json").exists()
