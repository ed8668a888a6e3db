"""What a launch does with mirrors: brings the run that `--from` names, and has runs copied to `--mirror`."""

import sys
from pathlib import Path

from pipeline.common.secrets import mask_secrets
from pipeline.config.paths import absolute_path
from pipeline.launch.checks import check_run
from pipeline.launch.plan import Plan, PlannedRun
from pipeline.launch.teacher_check import check_teacher
from pipeline.mirror.claim import check_mirror, use_mirror
from pipeline.mirror.fetch import describe_source, fetch_run, read_config_to_bring
from pipeline.mirror.place import child_location
from pipeline.recipes import RECIPES
from pipeline.run import directory as run_directory
from pipeline.run.config import RunConfig
from pipeline.run.files import CONFIG_NAME


def bring_run(plan: Plan) -> None:
    """Bring the run that `--from` names into the run directory; nothing without the flag.

    What the launch checks of a run that is there is checked before: a run that cannot go on here is not taken over.

    Raises:
        MirrorError: as `fetch_run`.
        RunDirectoryError: the flags are another training's than the run's.
        PipelineError, ShardingError: as `check_run` and `check_teacher`.
    """
    source = _source(plan)
    if source is None:
        return
    (run,) = plan.runs
    if not (run.run_dir / CONFIG_NAME).exists():
        _check_fits(plan, run, source)
    fetch_run(source, run.run_dir, take_over=plan.options.take_over, say=print)


def _check_fits(plan: Plan, run: PlannedRun, source: str) -> None:
    """Check that the run in a mirror can go on with the flags of a launch, before it is brought."""
    own_data = RECIPES[plan.options.recipe].own_data
    if own_data is not None and own_data.is_used_by(run.config):
        own_data.pack(Path(run.config.data.shards))
    facts = check_run(run.run_dir, run.config, plan.run_facts(run.config)).facts
    check_teacher(run.config, run.run_dir)
    mirrored = RunConfig(Path(CONFIG_NAME), read_config_to_bring(source))
    differences = run_directory.describe_differences(mirrored, run.config, facts)
    if differences:
        raise run_directory.RunDirectoryError(
            "\n  ".join([f"--from {mask_secrets(source)} holds another training:", *differences])
            + "\nleave these flags out"
        )


def describe_run_to_bring(plan: Plan) -> str | None:
    """Return a line on the run that `--from` would bring; None without the flag.

    Raises:
        MirrorError: there is none, or the store does not answer.
    """
    source = _source(plan)
    return None if source is None else describe_source(source)


def check_mirror_of(plan: Plan, run: PlannedRun) -> None:
    """Check that a run can be copied to `--mirror`; nothing without the flag.

    Raises:
        MirrorError: as `check_mirror`.
    """
    location = _mirror(plan, run.run_dir)
    warning = None if location is None else check_mirror(run.run_dir, location)
    if warning is not None:
        print(f"warning: {warning}", file=sys.stderr)


def use_mirror_of(plan: Plan, run: PlannedRun) -> None:
    """Have a run copied to `--mirror` from its next attempt on; nothing without the flag.

    Raises:
        MirrorError: as `use_mirror`.
    """
    location = _mirror(plan, run.run_dir)
    if location is not None:
        use_mirror(run.run_dir, location)


def _source(plan: Plan) -> str | None:
    source = plan.options.mirrored_from
    return None if source is None else absolute_path(source)


def _mirror(plan: Plan, run_dir: Path) -> str | None:
    """Return where a run is mirrored: each run of a sweep in a folder of its own."""
    if plan.options.mirror is None:
        return None
    location = absolute_path(plan.options.mirror)
    return child_location(location, run_dir.name) if plan.options.sweep else location
