"""Recognises a run whose checkpoints are gone: it must not start over in its former files and its former MLflow run."""

from pathlib import Path

from pipeline.common.secrets import mask_secrets
from pipeline.run.files import (
    CHECKPOINTS,
    METRICS_NAME,
    checkpoints,
    read_events,
    read_metrics,
    step_folders,
)
from pipeline.run.mirror_files import read_target


def describe_lost_checkpoints(run_dir: Path, *, is_verified: bool = False) -> str | None:
    """Return what the records know of a run all of whose checkpoints are gone, and what to do.

    Args:
        run_dir: the run's folder.
        is_verified: whether its checkpoints were verified and none is valid; else those that are complete count.

    Returns:
        The message for the user; None if there is a checkpoint, or never was one: a run that was killed before its
        first save has lost no more than that interval.
    """
    if checkpoints(run_dir) and not is_verified:
        return None
    events, records = read_events(run_dir), read_metrics(run_dir)
    saved = max((event.get("step", 0) for event in events if event["event"] == "saved"), default=0)
    damaged = sorted(step_folders(run_dir))
    if not saved and not damaged and (events or not records):
        return None
    known = []
    if records:
        known.append(f"{METRICS_NAME} has steps to {records[-1]['step']}")
    if saved:
        known.append(f"step {saved} was saved")
    left = f"none of the {len(damaged)} checkpoints that are left is whole" if damaged else "no checkpoint is left"
    target = read_target(run_dir)
    mirror = "" if target is None else f", or go on from its mirror (--from {mask_secrets(target.location)}) there"
    return (
        f"{run_dir}: {', '.join([*known, left])}: put {run_dir / CHECKPOINTS} back, or launch with --begin-again, "
        f"which keeps the former files and the former MLflow run, or take another --run-dir{mirror}"
    )
