"""One training of a launch: its folder, its job, and how far it has come."""

import sys
from pathlib import Path

from jobs import Submission, local_words, notices, submit
from pipeline import run_dir as run_directory
from pipeline.digits import prepare_digits
from pipeline.launch_checks import Checked, check_run, check_start
from pipeline.launch_plan import Plan, PlannedRun
from pipeline.notice import Needs, warnings
from pipeline.register_name import REGISTERED_NAME
from pipeline.task import TrainTask
from pipeline.uncommitted import keep_changes


def prepare_run(plan: Plan, run: PlannedRun) -> Checked:
    """Check everything, make the run's folder, warn of what was measured in it."""
    check_start(plan, run)
    if plan.options.recipe == "demo":
        prepare_digits(Path(run.config.data.shards))
    checked = check_run(plan, run)
    run_directory.prepare(run.run_dir, run.config, checked.extra)
    keep_changes(Path(__file__).resolve().parents[1], run.run_dir)
    for words in warnings(Needs.of_run(run.run_dir), notices(plan.cluster, plan.resources)):
        print(f"warning: {words}", file=sys.stderr)
    return checked


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


def is_registered(run_dir: Path) -> bool:
    """Whether the model is in the registry."""
    return (run_dir / REGISTERED_NAME).exists()
