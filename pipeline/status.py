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
    from pipeline.status_jobs import Jobs

WATCH_EVERY_S = 5.0


def sync_run(run_dir: Path) -> str:
    """Send MLflow what it has not taken of a run; returns what was done, in a line.

    Steps after the newest checkpoint are sent only when the training has finished: a resumed run computes them again.

    Raises:
        TrackingError: the server does not take it.
        ValueError: the folder is no run.
    """
    from pipeline.report import write_report
    from pipeline.run_files import durable_step
    from pipeline.status_data import run_state
    from pipeline.status_jobs import Jobs
    from pipeline.tracking_client import TrackingError, mlflow_session, one_line
    from pipeline.tracking_secrets import mask_secrets
    from pipeline.tracking_shipper import EVERYTHING, Shipper
    from pipeline.tracking_state import shipping_lock

    with shipping_lock(run_dir, wait=False) as free:
        if not free:
            return f"{run_dir} is being trained and sends by itself; nothing to do"
        shipper = Shipper(run_dir)
        before = shipper.state.shipped_step
        seen = run_state(run_dir)
        never_begins = seen == "submitted" and Jobs().has_ended(run_dir)
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


def lines(status: "RunStatus", now: float, job: str | None = None) -> list[str]:
    """A run in full, with what the cluster says of its job where it was asked."""
    from pipeline.run_files import METRICS_NAME

    rows = {"state": status.state, "attempt": _attempt(status), "step": _step(status)}
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


def _runs(run_dir: Path | None, root: Path) -> tuple[list[Path], Path | None]:
    """The one run that is meant and None, or those in a folder and the folder.

    Raises:
        ValueError: there is no run.
    """
    from pipeline.run_files import CONFIG_NAME
    from pipeline.status_data import find_runs

    if run_dir is not None and (run_dir / CONFIG_NAME).exists():
        return [run_dir], None
    folder = root if run_dir is None else run_dir
    runs = find_runs(folder)
    if not runs and run_dir is not None:
        raise ValueError(f"{run_dir} is no run directory, for it has no {CONFIG_NAME}, and no runs are in it")
    if not runs:
        raise ValueError(f"no runs in {folder}: give a run directory or a folder of runs")
    return runs, folder


def _show(statuses: "list[RunStatus]", folder: Path | None, jobs: "Jobs") -> list[str]:
    """Lines for one run, or for all in a folder."""
    unfinished = [status.run_dir for status in statuses if status.state != "finished"]
    words = {run: said for run in unfinished if (said := jobs.words(run)) is not None}
    if folder is None:
        return lines(statuses[0], time.time(), words.get(statuses[0].run_dir))
    return table(statuses, folder, words)


def _watch(run_dir: Path | None, root: Path, again: bool) -> None:
    """Print how the runs stand, and `again` until nothing more will happen to any."""
    from pipeline.status_data import read_status
    from pipeline.status_jobs import OVER, Jobs

    jobs, quiet = Jobs(), 0
    while True:
        runs, folder = _runs(run_dir, root)
        statuses, unread = [], []
        for run in runs:
            try:
                statuses.append(read_status(run))
            except ValueError as error:
                if folder is None:
                    raise
                unread.append(str(error))
        jobs.next_look()
        text = [*_show(statuses, folder, jobs), *unread]
        if again and sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")
        print("\n".join(text), flush=True)
        # Between the job of one run and that of the next none may be there for a moment.
        quiet = quiet + 1 if all(map(jobs.is_over, statuses)) else 0
        if not again or quiet == 2 or all(status.state in OVER for status in statuses):
            return
        time.sleep(WATCH_EVERY_S)


def _to_sync(run_dir: Path | None, root: Path) -> list[Path]:
    """The run that is meant, those of a sweep, or all in a folder that MLflow has not taken all of."""
    from pipeline.status_data import SWEEP_NAME

    runs, folder = _runs(run_dir, root)
    return runs if folder is None or (folder / SWEEP_NAME).exists() else _unsent(runs)


def _sync(runs: list[Path]) -> int:
    """Send what each run still has to send; one that cannot does not stop the next."""
    from pipeline.tracking_client import TrackingError

    failed = False
    for run in runs:
        try:
            print(sync_run(run), flush=True)
        except (TrackingError, ValueError) as error:
            failed = True
            _complain(f"{run}: {error}" if len(runs) > 1 else str(error))
    if not runs:
        print("MLflow has taken everything of these runs")
    return int(failed)


def _complain(words: str) -> None:
    from pipeline.tracking_secrets import mask_secrets

    print(f"status: {mask_secrets(words)}", file=sys.stderr)


def _unsent(runs: list[Path]) -> list[Path]:
    """Runs that MLflow has not taken all of."""
    from pipeline.tracking_state import load_state

    states = {run: load_state(run) for run in runs}
    return [run for run, state in states.items() if state is None or state.sent_status != state.status]


def main(run_dir: Path | None = None, /, *, watch: bool = False, sync: bool = False, runs: Path = Path("runs")) -> int:
    """Show how a run stands, or all runs.

    Args:
        run_dir: A run's folder, or a folder of runs; by default that of --runs.
        watch: Look again every five seconds until nothing more will happen by itself.
        sync: Send MLflow what a server that did not answer has missed.
        runs: Folder that holds the runs.
    """
    try:
        if sync:
            return _sync(_to_sync(run_dir, runs))
        _watch(run_dir, runs, watch)
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    from pipeline.command_help import run_main

    sys.exit(run_main(main, "python -m pipeline.status"))
