"""What a launch does with mirrors: brings the run that `--from` names, and has runs copied to `--mirror`."""

import sys
from pathlib import Path

from pipeline.config.paths import absolute_path
from pipeline.launch.plan import Plan, PlannedRun
from pipeline.mirror.claim import check_mirror, use_mirror
from pipeline.mirror.fetch import describe_source, fetch_run
from pipeline.mirror.place import child_location


def bring_run(plan: Plan) -> None:
    """Bring the run that `--from` names into the run directory; nothing without the flag.

    Raises:
        MirrorError: as `fetch_run`.
    """
    source = _source(plan)
    if source is not None:
        fetch_run(source, plan.run_dir, take_over=plan.options.take_over, say=print)


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
