"""`python -m pipeline.launch`: check everything, submit a training as a job, follow it, say where everything is."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import Outcome
from pipeline.common.cli import exit_status
from pipeline.launch.options import LaunchOptions, parse

if TYPE_CHECKING:
    from jobs import Submission


def launch(options: LaunchOptions) -> int:
    """Do what the options say; returns the exit status."""
    from pipeline.launch.checks import rehearse
    from pipeline.launch.plan import build_plan, show
    from pipeline.launch.run import cluster_words, prepare_run, submit_run
    from pipeline.weights.card import is_exported

    plan = build_plan(options)
    if options.dry_run:
        show(plan)
        rehearse(plan)
        return 0
    if options.sweep:
        from pipeline.launch.sweep import launch_sweep

        return launch_sweep(plan)
    (run,) = plan.runs
    checked = prepare_run(plan, run)
    print(checked.dataset)
    if is_exported(run.run_dir):
        print("this run has reached its end before; nothing is trained")
        return conclude(run.run_dir)
    print(cluster_words(plan))
    submission = submit_run(plan, run)
    print(f"job {submission.job_id}; everything of this run is in {run.run_dir}")
    if not options.wait:
        print(f"follow it: python -m pipeline.status {run.run_dir} --watch")
        return 0
    return follow(submission, run.run_dir, checked.total_steps)


def conclude(run_dir: Path) -> int:
    """Register a run that was exported and is not registered yet, and say where everything is.

    Its job may have had no time left for that, or no way to the server.
    """
    from pipeline.launch.closing import closing_words
    from pipeline.run.files import is_registered

    if not is_registered(run_dir):
        from pipeline.register.registration import register_or_explain

        register_or_explain(run_dir)
    print(closing_words(run_dir, Outcome.FINISHED))
    return 0 if is_registered(run_dir) else 1


def follow(submission: "Submission", run_dir: Path, total_steps: int) -> int:
    """Show the job's progress to its end and say what came of it; returns the exit status."""
    from pipeline.launch.closing import closing_words
    from pipeline.launch.progress import Progress

    with contextlib.closing(Progress({"": run_dir}, total_steps)) as progress:
        outcome = submission.wait(poll_s=1.0, on_update=lambda update: progress.show("", update))
    if outcome is Outcome.FINISHED:
        return conclude(run_dir)
    print(closing_words(run_dir, outcome))
    if outcome is Outcome.FAILED:
        print(f"error: {submission.failure()}", file=sys.stderr)
    return 0 if outcome is Outcome.DETACHED else 1


def main(arguments: list[str] | None = None) -> int:
    """Run the command `python -m pipeline.launch`; an error that is the user's to mend is one line and status 2."""
    return exit_status(lambda: launch(parse(sys.argv[1:] if arguments is None else arguments)), on_error=2)
