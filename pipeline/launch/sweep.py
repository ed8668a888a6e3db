"""A sweep: one job array under Slurm, one training after the other elsewhere; each a run of its own."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs import Outcome, Update, private_directory, submit_array, wait_all
from pipeline.launch.closing import come_back_words, sweep_words
from pipeline.launch.plan import Plan, PlannedRun
from pipeline.launch.progress import Progress
from pipeline.launch.run import cluster_words, prepare_run, submit_run
from pipeline.run.files import is_registered
from pipeline.run.sweep import prepare_folder
from pipeline.train.job_task import TrainTask
from pipeline.weights.card import is_exported


def launch_sweep(plan: Plan) -> int:
    """Train what is not trained yet; returns 0 when every run of the sweep has ended in a registered model."""
    private_directory(plan.run_dir)
    prepare_folder(plan.run_dir, plan.options.sweep, [run.run_dir.name for run in plan.runs])
    prepared = {run.run_dir: prepare_run(plan, run) for run in plan.runs}
    totals = {run_dir: checked.total_steps for run_dir, checked in prepared.items()}
    for words in dict.fromkeys(str(checked.dataset) for checked in prepared.values()):
        print(words)
    waiting = [run for run in plan.runs if not is_exported(run.run_dir)]
    for run in plan.runs:
        if run not in waiting and not is_registered(run.run_dir):
            from pipeline.register.registration import register_or_explain

            register_or_explain(run.run_dir)
    if not waiting:
        print("every run of this sweep has reached its end before; nothing is trained")
    elif plan.cluster == "slurm":
        return _as_array(plan, waiting, totals)
    else:
        print(f"{cluster_words(plan)}, for each of {len(waiting)} runs in turn")
        _in_turn(plan, waiting, totals)
    return _conclude(plan)


def _as_array(plan: Plan, runs: list[PlannedRun], totals: dict[Path, int]) -> int:
    submissions = submit_array(
        [TrainTask(run.run_dir) for run in runs],
        task_folders=[run.run_dir / "submitit" for run in runs],
        folder=plan.logs,
        resources=plan.resources,
        name=plan.name,
        code=plan.code(copy=True),
    )
    print(f"{cluster_words(plan)} for each of {len(runs)} runs; everything of this sweep is in {plan.run_dir}")
    names = [run.run_dir.name for run in runs]
    for name, submission in zip(names, submissions, strict=True):
        print(f"job {submission.job_id}: {name}")
    if not plan.options.wait:
        print(f"follow it: python -m pipeline.status {plan.run_dir} --watch")
        return 0
    folders = {name: run.run_dir for name, run in zip(names, runs, strict=True)}
    with contextlib.closing(Progress(folders, sum(totals[run.run_dir] for run in runs))) as progress:

        def show(number: int, update: Update) -> None:
            progress.show(names[number], update)

        outcomes = wait_all(submissions, on_update=show)
    if Outcome.DETACHED in outcomes:
        left = [each.job_id for each, outcome in zip(submissions, outcomes, strict=True) if outcome is Outcome.DETACHED]
        print(f"\nthe sweep goes on without this launcher; scancel {' '.join(left)} ends it; its logs: {plan.logs}")
        print(come_back_words(plan.run_dir))
        return 0
    for name, submission, outcome in zip(names, submissions, outcomes, strict=True):
        if outcome is Outcome.FAILED:
            print(f"error: {name}: {submission.failure()}", file=sys.stderr)
    _say_ended([run for run, outcome in zip(runs, outcomes, strict=True) if outcome is not Outcome.FINISHED])
    return _conclude(plan)


def _say_ended(runs: Sequence[PlannedRun]) -> None:
    """Tell MLflow of runs that ended before they began: they could not do so, and the run above waits for them."""
    from pipeline.status.sync import sync_run
    from pipeline.tracking.client import TrackingError
    from pipeline.tracking.state import load_state

    for run in runs:
        if load_state(run.run_dir) is not None:
            continue
        try:
            sync_run(run.run_dir)
        except (TrackingError, ValueError) as error:
            print(f"{run.run_dir.name}: {error}; python -m pipeline.status --sync {run.run_dir} tells it later")


def _in_turn(plan: Plan, runs: list[PlannedRun], totals: dict[Path, int]) -> None:
    """One after the other on this machine, until one is interrupted; a run that fails does not stop the next."""
    for number, run in enumerate(runs):
        print(f"\n{run.run_dir.name}")
        submission = submit_run(plan, run)
        with contextlib.closing(Progress({"": run.run_dir}, totals[run.run_dir])) as progress:
            outcome = submission.wait(poll_s=1.0, on_update=lambda update, shown=progress: shown.show("", update))
        if outcome is Outcome.FAILED:
            print(f"error: {run.run_dir.name}: {submission.failure()}", file=sys.stderr)
        if outcome is Outcome.INTERRUPTED:
            _say_ended(runs[number:])
            return


def _conclude(plan: Plan) -> int:
    """Say how every run of the sweep stands; returns the exit status."""
    print(sweep_words(plan.run_dir, [run.run_dir for run in plan.runs]))
    return 0 if all(is_registered(run.run_dir) for run in plan.runs) else 1
