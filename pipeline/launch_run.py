"""One training of a launch: its folder, its job, and how far it has come."""

import dataclasses
import shlex
import sys
from pathlib import Path

from jobs import Submission, local_words, notices, submit
from pipeline import run_dir as run_directory
from pipeline.digits import prepare_digits
from pipeline.files import read_json
from pipeline.launch_options import LaunchError
from pipeline.launch_plan import Dataset, Plan, PlannedRun, check_shards, check_weights
from pipeline.notice import Needs, warnings
from pipeline.register_name import REGISTERED_NAME
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
    name = _name_to_register(plan, run)
    if plan.options.recipe == "demo":
        prepare_digits(Path(run.config.data.shards))
    dataset = check_shards(run.config)
    total_steps = build_schedule(run.config, dataset.num_samples).total_steps
    facts = {"dataset": dataclasses.asdict(dataset), "total_steps": total_steps, "registered_name": name}
    run_directory.prepare(run.run_dir, run.config, plan.extra() | facts)
    keep_changes(Path(__file__).resolve().parents[1], run.run_dir)
    for words in warnings(Needs.of_run(run.run_dir), notices(plan.cluster, plan.resources)):
        print(f"warning: {words}", file=sys.stderr)
    return dataset, total_steps


def _name_to_register(plan: Plan, run: PlannedRun) -> str | None:
    """The registered model that was asked for: now, or when the run began; None: that of the network.

    Raises:
        LaunchError: the run is registered under another name already.
    """
    name = plan.options.registered_name
    if name is None:
        begun = (run.run_dir / "config.json").exists()
        return run_directory.document(run.run_dir).get("registered_name") if begun else None
    there = read_json(run.run_dir / REGISTERED_NAME)
    if there is not None and there["name"] != name:
        raise LaunchError(
            f"--registered-name {name}: {run.run_dir} is registered as {there['name']} already; under another name: "
            f"python -m pipeline.register {run.run_dir} --registered-name {shlex.quote(name)}"
        )
    return name


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
    return (run_dir / REGISTERED_NAME).exists()
