"""A sweep: one job array under Slurm, one training after the other elsewhere; each is a run of its own."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs import Outcome, Submission, Update, private_directory, submit_array, wait_all
from pipeline.common.errors import PipelineError
from pipeline.launch.closing import as_typed, describe_return, describe_sweep_end
from pipeline.launch.evaluation import conclude_evaluations, will_be_evaluated
from pipeline.launch.plan import Plan, PlannedRun
from pipeline.launch.progress import Progress
from pipeline.launch.run import describe_cluster, prepare_run, submit_run
from pipeline.run.files import LOGS, is_registered
from pipeline.run.sweep import prepare_folder
from pipeline.train.job_task import TrainTask
from pipeline.weights.card import is_exported


def launch_sweep(plan: Plan) -> int:
    """Train the runs that are not finished; return 0 if every run of the sweep ends in a registered model."""
    private_directory(plan.run_dir)
    prepare_folder(plan.run_dir, plan.options.sweep, [run.run_dir.name for run in plan.runs])
    told: set[str] = set()
    prepared = {run.run_dir: prepare_run(plan, run, told) for run in plan.runs}
    total_steps = {run_dir: checked.total_steps for run_dir, checked in prepared.items()}
    for dataset in dict.fromkeys(str(checked.dataset) for checked in prepared.values()):
        print(dataset)
    unfinished = [run for run in plan.runs if not is_exported(run.run_dir)]
    _register_finished(plan)
    if not unfinished:
        print("every run of this sweep is finished already; nothing is trained")
    elif plan.cluster == "slurm":
        return _train_as_array(plan, unfinished, total_steps)
    else:
        print(f"{describe_cluster(plan)}, for each of {len(unfinished)} runs in turn")
        _train_in_turn(plan, unfinished, total_steps)
    return _conclude(plan)


def _register_finished(plan: Plan) -> None:
    """Register the models of finished runs that could not be registered before."""
    for run in plan.runs:
        if (
            is_exported(run.run_dir)
            and not conclude_evaluations(run.run_dir, follow=False)
            and not is_registered(run.run_dir)
        ):
            from pipeline.register.registration import register_or_explain

            register_or_explain(run.run_dir)


def _train_as_array(plan: Plan, runs: list[PlannedRun], total_steps: dict[Path, int]) -> int:
    """Submit one job array, and follow it if asked to; return the exit status."""
    submissions = submit_array(
        [TrainTask(run.run_dir) for run in runs],
        task_folders=[run.run_dir / LOGS for run in runs],
        folder=plan.logs,
        resources=plan.resources,
        name=plan.name,
        code=plan.code(copy=True),
    )
    print(f"{describe_cluster(plan)} for each of {len(runs)} runs; everything of this sweep is in {plan.run_dir}")
    for run, submission in zip(runs, submissions, strict=True):
        print(f"job {submission.job_id}: {run.run_dir.name}")
    if not plan.options.wait:
        print(as_typed(f"follow it: python -m pipeline.status {plan.run_dir} --watch"))
        return 0
    outcomes = _follow_array(runs, submissions, sum(total_steps[run.run_dir] for run in runs))
    detached = [s.job_id for s, outcome in zip(submissions, outcomes, strict=True) if outcome is Outcome.DETACHED]
    if detached:
        print(f"\nthe sweep goes on without this launcher; scancel {' '.join(detached)} ends it; its logs: {plan.logs}")
        print(as_typed(describe_return(plan.run_dir)))
        return 0
    for run, submission, outcome in zip(runs, submissions, outcomes, strict=True):
        if outcome is Outcome.FAILED:
            _report_failed(run, submission)
    told = (Outcome.FINISHED, Outcome.FAILED)
    _report_ended([run for run, outcome in zip(runs, outcomes, strict=True) if outcome not in told])
    return _conclude(plan)


def _follow_array(runs: list[PlannedRun], submissions: list[Submission], total_steps: int) -> list[Outcome]:
    """Show the progress of all runs to their ends; return the outcomes."""
    names = [run.run_dir.name for run in runs]
    folders = {run.run_dir.name: run.run_dir for run in runs}
    with contextlib.closing(Progress(folders, total_steps)) as progress:

        def show(number: int, update: Update) -> None:
            progress.show(names[number], update)

        return wait_all(submissions, on_update=show)


def _train_in_turn(plan: Plan, runs: list[PlannedRun], total_steps: dict[Path, int]) -> None:
    """Train one run after the other on this machine until one is interrupted; a failed run does not stop the next."""
    for number, run in enumerate(runs):
        print(f"\n{run.run_dir.name}")
        submission = submit_run(plan, run)
        with contextlib.closing(Progress({"": run.run_dir}, total_steps[run.run_dir])) as progress:
            outcome = submission.wait(poll_s=1.0, on_update=lambda update, shown=progress: shown.show("", update))
        if outcome is Outcome.FAILED:
            _report_failed(run, submission)
        if outcome is Outcome.INTERRUPTED:
            _report_ended(runs[number:])
            return


def _report_failed(run: PlannedRun, submission: Submission) -> None:
    """Tell the user and MLflow of a run whose job has failed."""
    failure = submission.failure()
    print(f"error: {run.run_dir.name}: {failure}", file=sys.stderr)
    _report_ended([run], failure)


def _report_ended(runs: Sequence[PlannedRun], failure: str | None = None) -> None:
    """Tell MLflow of runs that ended before they could tell it: the sweep's parent run waits for all of them.

    Args:
        runs: the runs.
        failure: how their job has failed; None: it has not.
    """
    from pipeline.status.sync import sync_run
    from pipeline.tracking.settle import settle_after_end
    from pipeline.tracking.state import load_state

    for run in runs:
        if load_state(run.run_dir) is not None:
            settle_after_end(run.run_dir, has_failed=failure is not None, failure=failure or "")
            continue
        try:
            sync_run(run.run_dir)
        except PipelineError as error:
            print(f"{run.run_dir.name}: {error}; to tell MLflow later:")
            print(as_typed(f"    python -m pipeline.status --sync {run.run_dir}"))


def _conclude(plan: Plan) -> int:
    """Print how every run of the sweep stands, after its last evaluations; return the exit status.

    With `--no-wait` an evaluation job that will register a model is enough.
    """
    for run in plan.runs:
        conclude_evaluations(run.run_dir, follow=plan.options.wait)
    print(describe_sweep_end(plan.run_dir, [run.run_dir for run in plan.runs]))
    folders = [run.run_dir for run in plan.runs]
    unregistered = [folder for folder in folders if not is_registered(folder)]
    return 1 if unregistered and (plan.options.wait or not all(map(will_be_evaluated, unregistered))) else 0
