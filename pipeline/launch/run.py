"""One training of a launch: prepare its folder, submit its job."""

import sys
from pathlib import Path

from jobs import Submission, describe_local, find_notices, submit
from pipeline.common.processes import PROJECT_ROOT
from pipeline.launch.checks import Checked, check_run, check_start
from pipeline.launch.elsewhere import check_mirror_of, use_mirror_of
from pipeline.launch.evaluation import end_waiting_evaluation
from pipeline.launch.origin import adopt_copy, begin_again, begins_again
from pipeline.launch.place_checks import describe_slow_precision
from pipeline.launch.plan import Plan, PlannedRun
from pipeline.launch.teacher_check import check_teacher
from pipeline.recipes import RECIPES
from pipeline.run import directory as run_directory
from pipeline.run import notify
from pipeline.run.code_state import keep_changes
from pipeline.run.files import LOGS
from pipeline.run.mirror_files import read_target
from pipeline.run.time_to_save import TimeToSave, describe_short_notices
from pipeline.train.job_task import TrainTask
from pipeline.weights.card import is_exported


def prepare_run(plan: Plan, run: PlannedRun, told: set[str] | None = None) -> Checked:
    """Make all checks, write the run's folder, and print warnings, also if a job would have too little time to save.

    Args:
        plan: the launch.
        run: the run.
        told: warnings that were printed for other runs of a sweep; those of this run are added.

    Raises:
        LaunchError, ShardingError, ConfigError, RunDirectoryError: as `check_start`, `check_run` and `check_teacher`.
        JobError: an evaluation job that would not begin in time cannot be cancelled.
        MirrorError: the run cannot be copied to `--mirror`.
    """
    check_start(run.run_dir, run.config, plan.options)
    check_mirror_of(plan, run)
    own_data = RECIPES[plan.options.recipe].own_data
    if own_data is not None and own_data.is_used_by(run.config):
        own_data.pack(Path(run.config.data.shards))
    checked = check_run(run.run_dir, run.config, plan.run_facts(run.config))
    check_teacher(run.config, run.run_dir)
    _mark_origin(plan, run.run_dir)
    run_directory.prepare(run.run_dir, run.config, checked.facts)
    if plan.options.notify is not None:
        notify.remember(run.run_dir, plan.options.notify)
    if not is_exported(run.run_dir):
        end_waiting_evaluation(run.run_dir)
    use_mirror_of(plan, run)
    keep_changes(PROJECT_ROOT, run.run_dir)
    notices = find_notices(plan.cluster, plan.resources)
    short_notices = describe_short_notices(TimeToSave.of_run(run.run_dir), notices)
    slow = describe_slow_precision(run.config, plan.resources, plan.cluster)
    told = set() if told is None else told
    for warning in [*checked.warnings, *slow, *short_notices]:
        if warning not in told:
            print(f"warning: {warning}", file=sys.stderr)
        told.add(warning)
    return checked


def _mark_origin(plan: Plan, run_dir: Path) -> None:
    """Give a run that is begun again, or that is a copy, an MLflow run of its own, and say so."""
    original = adopt_copy(run_dir)
    if original is not None:
        print(f"{run_dir} is a copy of {original}: it gets an MLflow run of its own, linked to the original's")
    if plan.options.begin_again and begins_again(run_dir):
        was_mirrored = read_target(run_dir) is not None
        former = begin_again(run_dir)
        print(f"{run_dir} begins again, in an MLflow run of its own; its former files are in {former}")
        if was_mirrored and plan.options.mirror is None:
            print("warning: it is copied to its mirror no longer: give --mirror again", file=sys.stderr)


def submit_run(plan: Plan, run: PlannedRun) -> Submission:
    """Submit one training as a job of its own."""
    return submit(
        TrainTask(run.run_dir),
        cluster=plan.cluster,
        folder=run.run_dir / LOGS,
        resources=plan.resources,
        name=plan.name,
        code=plan.code(copy=True),
        attached=plan.options.wait,
    )


def describe_cluster(plan: Plan) -> str:
    """Describe where the processes of a run will run, and their number."""
    count = plan.resources.world_size
    processes = f"{count} process{'es' if count > 1 else ''}"
    if plan.cluster == "local":
        processes = describe_local(plan.resources)
    return f"cluster: {plan.cluster} ({plan.why}); {processes}"
