"""One training of a launch: its folder, its job, and how far it has come."""

import sys
from pathlib import Path

from jobs import Submission, describe_local, find_notices, submit
from pipeline.common.processes import PROJECT_ROOT
from pipeline.launch.checks import Checked, check_run, check_start
from pipeline.launch.plan import Plan, PlannedRun
from pipeline.recipes import RECIPES
from pipeline.run import directory as run_directory
from pipeline.run.code_state import keep_changes
from pipeline.run.time_to_save import Needs, warnings
from pipeline.train.job_task import TrainTask


def prepare_run(plan: Plan, run: PlannedRun) -> Checked:
    """Check everything, make the run's folder, warn of what was measured in it."""
    check_start(plan, run)
    own_data = RECIPES[plan.options.recipe].own_data
    if own_data is not None:
        own_data.pack(Path(run.config.data.shards))
    checked = check_run(plan, run)
    run_directory.prepare(run.run_dir, run.config, checked.extra)
    keep_changes(PROJECT_ROOT, run.run_dir)
    for words in warnings(Needs.of_run(run.run_dir), find_notices(plan.cluster, plan.resources)):
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
    processes = describe_local(plan.resources) if plan.cluster == "local" else processes
    return f"cluster: {plan.cluster} ({plan.why}); {processes}"
