"""How runs stand: `python -m pipeline.status [RUN_DIR] [--watch] [--sync]`."""

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.cli import print_error
from pipeline.common.errors import PipelineError
from pipeline.status.show import lines, table
from pipeline.status.sync import sync_run, unsent_runs

if TYPE_CHECKING:
    from pipeline.run.status import RunStatus
    from pipeline.status.jobs import Jobs


WATCH_EVERY_S = 5.0


def _runs(run_dir: Path | None, root: Path) -> tuple[list[Path], Path | None]:
    """The one run that is meant and None, or those in a folder and the folder.

    Raises:
        RunDirectoryError: there is no run.
    """
    from pipeline.run.files import CONFIG_NAME, RunDirectoryError
    from pipeline.run.status import find_runs

    if run_dir is not None and (run_dir / CONFIG_NAME).exists():
        return [run_dir], None
    folder = root if run_dir is None else run_dir
    runs = find_runs(folder)
    if not runs and run_dir is not None:
        raise RunDirectoryError(f"{run_dir} is no run directory, for it has no {CONFIG_NAME}, and no runs are in it")
    if not runs:
        raise RunDirectoryError(f"no runs in {folder}: give a run directory or a folder of runs")
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
    from pipeline.run.status import read_status
    from pipeline.status.jobs import OVER, Jobs

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
    from pipeline.run.status import SWEEP_NAME

    runs, folder = _runs(run_dir, root)
    return runs if folder is None or (folder / SWEEP_NAME).exists() else unsent_runs(runs)


def _sync(runs: list[Path]) -> int:
    """Send what each run still has to send; one that cannot does not stop the next."""
    failed = False
    for run in runs:
        try:
            print(sync_run(run), flush=True)
        except PipelineError as error:
            failed = True
            print_error(f"{run}: {error}" if len(runs) > 1 else str(error))
    if not runs:
        print("MLflow has taken everything of these runs")
    return int(failed)


def main(run_dir: Path | None = None, /, *, watch: bool = False, sync: bool = False, runs: Path = Path("runs")) -> int:
    """Show how a run stands, or all runs.

    Args:
        run_dir: A run's folder, or a folder of runs; by default that of --runs.
        watch: Look again every five seconds until nothing more will happen by itself.
        sync: Send MLflow what a server that did not answer has missed.
        runs: Folder that holds the runs.
    """
    if sync:
        return _sync(_to_sync(run_dir, runs))
    # Ctrl-C is how a watch is meant to end.
    with contextlib.suppress(KeyboardInterrupt):
        _watch(run_dir, runs, watch)
    return 0
