"""How runs stand: `python -m pipeline.status [RUN_DIR] [--watch] [--sync]`."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.tracking_behind import KEPT, behind_words, steps_waiting
from pipeline.words import duration

if TYPE_CHECKING:
    from pipeline.status_data import RunStatus

WATCH_EVERY_S = 5.0
OVER = ("finished", "failed", "cancelled")
"""States of a run to which nothing more will happen by itself."""


def sync_run(run_dir: Path) -> str:
    """Send MLflow what it has not taken of a run; returns what was done, in a line.

    Steps after the newest checkpoint are sent only when the training has finished: a resumed run computes them again.

    Raises:
        TrackingError: the server does not take it.
        ValueError: the folder is no run.
    """
    from pipeline.report import write_report
    from pipeline.status_data import run_state
    from pipeline.tracking_client import TrackingError, mlflow_session, one_line
    from pipeline.tracking_secrets import mask_secrets
    from pipeline.tracking_shipper import EVERYTHING, Shipper
    from pipeline.tracking_state import durable_step, shipping_lock

    with shipping_lock(run_dir, wait=False) as free:
        if not free:
            return f"{run_dir} is being trained and sends by itself; nothing to do"
        shipper = Shipper(run_dir)
        before = shipper.state.shipped_step
        seen = run_state(run_dir)
        never_begins = seen == "submitted" and _job_is_over(run_dir)
        if shipper.state.status == "RUNNING" and (never_begins or seen not in ("running", "submitted")):
            # Everything was killed at once, the worker too, or before it began: nobody could say how it ended.
            shipper.end({"finished": "FINISHED", "failed": "FAILED"}.get(seen, "KILLED"))
        try:
            with mlflow_session(shipper.uri, timeout_s=20, retries=1):
                shipper.ship(EVERYTHING if shipper.state.status == "FINISHED" else durable_step(run_dir))
                shipper.send_status()
                write_report(run_dir)
                shipper.send_report()
                shipper.catches_up()
        except TrackingError:
            raise
        except Exception as error:
            raise TrackingError(f"MLflow at {mask_secrets(shipper.uri)} does not take it: {one_line(error)}") from error
    state = shipper.state
    sent = f"steps up to {state.shipped_step}" if state.shipped_step > before else "nothing was missing"
    return f"MLflow run {state.run_id} at {state.tracking_uri}: {sent}, status {state.status}"


def lines(status: "RunStatus", now: float) -> list[str]:
    """A run in full."""
    from pipeline.tracking_state import METRICS_NAME

    rows = {"state": status.state, "attempt": _attempt(status), "step": _step(status)}
    job = None if status.state == "finished" else _job(status.run_dir)
    if job is not None:
        rows["job"] = job
    if status.images_per_s is not None:
        rows["rate"] = f"{status.images_per_s:,.0f} images/s"
    if status.remaining_s is not None:
        rows["remaining"] = duration(status.remaining_s)
    if status.loss is not None:
        rows["loss"] = f"{status.loss:.4f}"
    if status.top1 is not None:
        rows["top-1"] = f"{100 * status.top1:.2f} %"
    if status.checkpoint_step is not None:
        age = "" if status.checkpoint_time is None else f", {duration(max(0, now - status.checkpoint_time))} ago"
        rows["checkpoint"] = f"step {status.checkpoint_step}{age}"
    else:
        rows["checkpoint"] = "none yet"
    if status.goodput is not None:
        rows["time"] = status.spent.words()
    rows["tracking"] = _tracking(status, now)
    if status.registered:
        rows["model"] = f"{status.registered['uri']} (version {status.registered['version']})"
    rows["logs"] = str(status.logs)
    rows["metrics"] = str(status.run_dir / METRICS_NAME)
    return [f"{status.run_dir} ({status.model})", *(f"  {name:<11}{value}" for name, value in rows.items())]


def table(statuses: "list[RunStatus]", root: Path, jobs: Mapping[Path, str] | None = None) -> list[str]:
    """Many runs below a folder, one a line, with what the cluster says of their jobs where it was asked."""
    jobs = jobs or {}
    head = ("run", "model", "state", "attempt", "step", "images/s", "remaining", "saved", "loss", "top-1", "goodput")
    rows: list[tuple[str, ...]] = [head]
    for status in statuses:
        rows.append(
            (
                str(status.run_dir.relative_to(root)),
                status.model,
                status.state,
                str(status.attempts[-1].number if status.attempts else 0),
                _step(status),
                "" if status.images_per_s is None else f"{status.images_per_s:,.0f}",
                "" if status.remaining_s is None else duration(status.remaining_s),
                "" if status.checkpoint_step is None else str(status.checkpoint_step),
                "" if status.loss is None else f"{status.loss:.4f}",
                "" if status.top1 is None else f"{100 * status.top1:.2f} %",
                "" if status.goodput is None else f"{100 * status.goodput:.0f} %",
            )
        )
    behind = [steps_waiting(status.tracking, status.step) for status in statuses]
    if any(behind):
        rows = [(*row, cell) for row, cell in zip(rows, ["unsent", *map(str, behind)], strict=True)]
    if jobs:
        cells = ["job", *(jobs.get(status.run_dir, "") for status in statuses)]
        rows = [(*row, cell) for row, cell in zip(rows, cells, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _step(status: "RunStatus") -> str:
    if status.total_steps is None:
        return str(status.step)
    return f"{status.step}/{status.total_steps} ({100 * status.step // max(1, status.total_steps)} %)"


def _attempt(status: "RunStatus") -> str:
    if not status.attempts:
        return "none has started"
    last = status.attempts[-1]
    ranks = f" on {last.world_size} ranks" if last.world_size else ""
    return f"{last.number}{ranks}, from step {last.first_step}, {duration(last.ended - last.started)}"


def _job_is_over(run_dir: Path) -> bool:
    """Whether nothing will happen to a run any more, by its job."""
    from jobs import JobError, attach

    submission = attach(run_dir / "submitit")
    try:
        return submission is None or submission.look()[1] is not None
    except JobError:
        return False


def _tracking(status: "RunStatus", now: float) -> str:
    state = status.tracking
    there = state is not None and state.run_id is not None
    words = "not in MLflow yet"
    if state is not None and there:
        words = f"MLflow run {state.run_id} at {state.tracking_uri}, up to step {max(0, state.shipped_step)}"
    behind = behind_words(state, status.step, now)
    if behind is not None:
        words += f"; {behind}"
    if status.state == "running":
        return words if behind is None else f"{words}; {KEPT}"
    sent = state is not None and there and state.sent_status == state.status
    return words if sent else f"{words}; to send: python -m pipeline.status --sync {status.run_dir}"


def _show(run_dir: Path | None, root: Path) -> tuple[list[str], bool]:
    """Lines for one run, or for all below a folder; and whether nothing more will happen.

    Raises:
        ValueError: no such run.
    """
    from pipeline.status_data import SWEEP_NAME, find_runs, read_status

    if run_dir is not None and (run_dir / SWEEP_NAME).exists():
        statuses = [read_status(run) for run in find_runs(run_dir)]
        return table(statuses, run_dir, _jobs(statuses)), all(status.state in OVER for status in statuses)
    if run_dir is not None:
        status = read_status(run_dir)
        return lines(status, time.time()), status.state in OVER
    runs = find_runs(root)
    if not runs:
        raise ValueError(f"no runs below {root}; give a run directory, or --runs FOLDER")
    statuses = [read_status(run) for run in runs]
    return table(statuses, root, _jobs(statuses)), False


def _job(run_dir: Path) -> str | None:
    """How the cluster's queue sees the run's job; None where it ran here."""
    from jobs import JobError, attach

    submission = attach(run_dir / "submitit")
    if submission is None:
        return None
    try:
        return f"{submission.job_id} {submission.update()}"
    except JobError as error:
        return f"{submission.job_id}, but {error}"


def _jobs(statuses: "list[RunStatus]") -> dict[Path, str]:
    """What the queue says of the jobs of unfinished runs, in its own words; asked no more once it is silent."""
    from jobs import JobError, attach

    found: dict[Path, str] = {}
    for status in statuses:
        submission = None if status.state == "finished" else attach(status.run_dir / "submitit")
        if submission is None:
            continue
        try:
            update = submission.update()
        except JobError as error:
            found[status.run_dir] = f"{submission.job_id}: {error}"
            break
        reason = f" ({update.reason})" if update.reason else ""
        found[status.run_dir] = f"{submission.job_id} {update.state}{reason}"
    return found


def _to_sync(run_dir: Path | None, root: Path) -> list[Path]:
    """The run that is meant, those of a sweep, or all that MLflow has not taken all of."""
    from pipeline.status_data import SWEEP_NAME, find_runs

    if run_dir is None:
        return _unsent(root)
    return find_runs(run_dir) if (run_dir / SWEEP_NAME).exists() else [run_dir]


def _unsent(root: Path) -> list[Path]:
    """Runs that MLflow has not taken all of."""
    from pipeline.status_data import find_runs
    from pipeline.tracking_state import load_state

    states = {run: load_state(run) for run in find_runs(root)}
    return [run for run, state in states.items() if state is None or state.sent_status != state.status]


def main(run_dir: Path | None = None, /, *, watch: bool = False, sync: bool = False, runs: Path = Path("runs")) -> int:
    """Show how a run stands, or all runs.

    Args:
        run_dir: A run's folder; without it, all below the folder of --runs.
        watch: Look again every five seconds until the run has ended.
        sync: Send MLflow what a server that did not answer has missed.
        runs: Folder that holds the runs.
    """
    from pipeline.tracking_client import TrackingError
    from pipeline.tracking_secrets import mask_secrets

    try:
        if sync:
            for folder in _to_sync(run_dir, runs):
                print(sync_run(folder))
            return 0
        while True:
            text, over = _show(run_dir, runs)
            if watch and sys.stdout.isatty():
                print("\x1b[2J\x1b[H", end="")
            print("\n".join(text), flush=True)
            if not watch or over:
                return 0
            time.sleep(WATCH_EVERY_S)
    except (TrackingError, ValueError) as error:
        print(f"status: {mask_secrets(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    import tyro

    sys.exit(tyro.cli(main, prog="python -m pipeline.status", config=(tyro.conf.FlagCreatePairsOff,)))
