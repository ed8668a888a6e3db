"""The command `python -m pipeline.status [RUN_DIR] [--watch] [--sync] [--export FORMAT]`: how runs stand."""

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.cli import print_error
from pipeline.common.errors import PipelineError
from pipeline.status.export import Export, Format, open_export
from pipeline.status.show import format_run, format_table
from pipeline.status.sync import settle_ended, sync_mirror, sync_run, unsent_runs

if TYPE_CHECKING:
    from pipeline.run.status import RunStatus
    from pipeline.status.jobs import Jobs


WATCH_EVERY_S = 5.0


def main(
    run_dir: Path | None = None,
    /,
    *,
    watch: bool = False,
    sync: bool = False,
    export: Format | None = None,
    runs: Path = Path("runs"),
) -> int:
    """Show how a run stands, or all runs.

    Args:
        run_dir: Directory of a run, or a folder of runs; by default that of --runs.
        watch: Look again every five seconds until no run will go on by itself.
        sync: Send MLflow, and copy to the mirror, what they missed while they did not answer.
        export: Write the metrics into the run directory, as csv, parquet, tensorboard or wandb (offline); with --watch
            again and again.
        runs: Folder that holds the runs.
    """
    runs = Path(os.path.expanduser(runs))
    if sync:
        return _sync(run_dir, runs)
    # A watch is meant to end by Ctrl-C.
    with contextlib.suppress(KeyboardInterrupt):
        _show(run_dir, runs, watch, export)
    return 0


def _select_runs(run_dir: Path | None, root: Path) -> tuple[list[Path], Path | None]:
    """Return the run that `run_dir` is, and None; or all runs in the folder `run_dir` (None: `root`), and the folder.

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


def _show(run_dir: Path | None, root: Path, watch: bool, export: Format | None) -> None:
    """Print how the runs stand, and export them; with `watch` again and again until no run will go on by itself."""
    exports: dict[Path, Export] = {}
    try:
        _look(run_dir, root, watch, export, exports)
    finally:
        for opened in exports.values():
            opened.close()


def _look(run_dir: Path | None, root: Path, watch: bool, export: Format | None, exports: dict[Path, Export]) -> None:
    from pipeline.status.jobs import OVER, Jobs

    jobs, looks_without_job = Jobs(), 0
    while True:
        runs, folder = _select_runs(run_dir, root)
        statuses, problems = _read_statuses(runs, is_one=folder is None)
        jobs.refresh()
        statuses = [jobs.complete(status) for status in statuses]
        for status in statuses:
            if status.state in OVER:
                settle_ended(status.run_dir, jobs)
        text = [*_format(statuses, folder, jobs), *problems]
        if watch and sys.stdout.isatty():
            print("\x1b[2J\x1b[H", end="")  # clear the screen
        if export is not None:
            text += _export(runs, export, exports)
        print("\n".join(text), flush=True)
        if not watch or all(status.state in OVER and not jobs.evaluates(status) for status in statuses):
            return
        # For a moment there may be no job, between the end of one and the start of the next.
        looks_without_job = looks_without_job + 1 if all(map(jobs.is_over, statuses)) else 0
        if looks_without_job == 2:
            return
        time.sleep(WATCH_EVERY_S)


def _export(runs: list[Path], kind: Format, exports: dict[Path, Export]) -> list[str]:
    """Bring the exports of the runs up to date; return a line for each that wrote something."""
    for run in runs:
        if run not in exports:
            exports[run] = open_export(run, kind)
    written = [exports[run].update() for run in runs]
    return [f"exported  {path}" for path in written if path is not None]


def _read_statuses(runs: list[Path], *, is_one: bool) -> "tuple[list[RunStatus], list[str]]":
    """Return the statuses of the runs, and a line for each run that cannot be read.

    Raises:
        RunDirectoryError: the one run that was asked for cannot be read.
    """
    from pipeline.run.status import read_status

    statuses, problems = [], []
    for run in runs:
        try:
            statuses.append(read_status(run))
        except (ValueError, OSError) as error:
            if is_one:
                raise
            problems.append(f"{run} cannot be read: {error}" if isinstance(error, OSError) else str(error))
    return statuses, problems


def _format(statuses: "list[RunStatus]", folder: Path | None, jobs: "Jobs") -> list[str]:
    """Return the lines for one run (`folder` is None), or for all runs in a folder."""
    unfinished = [status.run_dir for status in statuses if status.state != "finished"]
    descriptions = {run: text for run in unfinished if (text := jobs.describe(run)) is not None}
    if folder is None:
        (status,) = statuses
        evaluated_by = jobs.describe_evaluation(status.run_dir) if status.awaiting else ""
        return format_run(status, time.time(), descriptions.get(status.run_dir), evaluated_by)
    return format_table(statuses, folder, descriptions)


def _sync(run_dir: Path | None, root: Path) -> int:
    """Send what MLflow and the mirror lack of a run, of a sweep, or of all runs in a folder; return the exit status.

    A run that cannot be sent does not keep the next from being sent.
    """
    from pipeline.run.status import SWEEP_NAME

    runs, folder = _select_runs(run_dir, root)
    if folder is not None and not (folder / SWEEP_NAME).exists():
        runs = unsent_runs(runs)
    if not runs:
        print("MLflow and the mirrors have taken everything of these runs")
    has_failed = False
    for run in runs:
        for sync_with in (sync_run, sync_mirror):
            try:
                said = sync_with(run)
            except PipelineError as error:
                has_failed = True
                print_error(f"{run}: {error}" if len(runs) > 1 else str(error))
            else:
                print(said or "", end="\n" if said else "", flush=True)
    return int(has_failed)
