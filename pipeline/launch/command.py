"""The command: from the flags of a launch to its exit status."""

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.cli import exit_status
from pipeline.launch.options import LaunchOptions, parse

if TYPE_CHECKING:
    from jobs import Submission


def launch(options: LaunchOptions) -> int:
    """Do what the options say; return the exit status.

    Raises:
        PipelineError, JobError, ShardingError: the launch cannot work; the message is one line for the user.
    """
    from pipeline.launch.plan import build_plan

    plan = build_plan(options)
    if options.dry_run:
        from pipeline.launch.dry_run import print_checks, print_plan

        print_plan(plan)
        print_checks(plan)
        return 0
    if options.sweep:
        from pipeline.launch.sweep import launch_sweep

        return launch_sweep(plan)
    from pipeline.launch.closing import as_typed
    from pipeline.launch.elsewhere import bring_run
    from pipeline.launch.run import describe_cluster, prepare_run, submit_run
    from pipeline.weights.card import is_exported

    (run,) = plan.runs
    bring_run(plan)
    checked = prepare_run(plan, run)
    print(checked.dataset)
    if is_exported(run.run_dir):
        print("this run is finished already; nothing is trained")
        return conclude(run.run_dir, follow=options.wait)
    print(describe_cluster(plan))
    submission = submit_run(plan, run)
    jobs = ", ".join(submission.job_ids)
    print(f"job{'s' if len(submission.job_ids) > 1 else ''} {jobs}; everything of this run is in {run.run_dir}")
    if not options.wait:
        print(as_typed(f"follow it: python -m pipeline.status {run.run_dir} --watch"))
        return 0
    return follow(submission, run.run_dir, checked.total_steps)


def follow(submission: "Submission", run_dir: Path, total_steps: int) -> int:
    """Show the job's progress to its end and print the result; return the exit status."""
    from jobs import Outcome
    from pipeline.launch.closing import describe_end
    from pipeline.launch.progress import Progress

    with contextlib.closing(Progress({"": run_dir}, total_steps)) as progress:
        outcome = submission.wait(poll_s=1.0, on_update=lambda update: progress.show("", update))
    if outcome is Outcome.FINISHED:
        return conclude(run_dir, follow=True)
    has_failed = outcome is Outcome.FAILED
    failure = submission.failure() if has_failed else ""
    if outcome is not Outcome.DETACHED:
        from pipeline.tracking.settle import settle_after_end

        settle_after_end(run_dir, has_failed=has_failed, failure=failure)
    print(describe_end(run_dir, outcome))
    if has_failed:
        print(f"error: {failure}", file=sys.stderr)
    return 0 if outcome is Outcome.DETACHED else 1


def conclude(run_dir: Path, *, follow: bool) -> int:
    """Register a finished run unless it is registered, and print the result; return the exit status.

    The job registers its model itself, but may have had no time left for it, or no way to the server.

    Args:
        run_dir: of the run.
        follow: whether to wait for its last evaluations; else an evaluation job that will register it is enough.
    """
    from jobs import Outcome
    from pipeline.launch.closing import describe_end
    from pipeline.launch.evaluation import conclude_evaluations, will_be_evaluated
    from pipeline.run.files import is_registered

    was_registered = is_registered(run_dir)
    if not conclude_evaluations(run_dir, follow=follow) and not is_registered(run_dir):
        from pipeline.register.registration import register_or_explain

        register_or_explain(run_dir)
    if is_registered(run_dir) and not was_registered:
        from pipeline.mirror import Mirror

        Mirror.complete(run_dir)
    print(describe_end(run_dir, Outcome.FINISHED))
    return 0 if is_registered(run_dir) or (not follow and will_be_evaluated(run_dir)) else 1


def main(arguments: list[str] | None = None) -> int:
    """Run `python -m pipeline.launch`; an error that the user can mend is one line and exit status 2."""
    return exit_status(lambda: launch(parse(sys.argv[1:] if arguments is None else arguments)), on_error=2)
