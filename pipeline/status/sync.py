"""Sends MLflow, and copies to the mirror, what they missed while they did not answer (`pipeline.status --sync`)."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.status.jobs import Jobs


def sync_run(run_dir: Path) -> str:
    """Send MLflow what it lacks of a run; return a line on what was sent.

    Steps after the newest checkpoint are sent only if the training has finished: a resumed run computes them again.

    Raises:
        TrackingError: the server does not answer, or refuses what is sent.
        ValueError: the folder is no run.
    """
    from pipeline.status.jobs import Jobs
    from pipeline.tracking.settle import settle

    jobs = Jobs()
    settled = settle(run_dir, lambda: jobs.has_ended(run_dir), failure=lambda: jobs.failure(run_dir))
    if settled is None:
        return f"{run_dir} is being trained and sends by itself; nothing to do"
    state, before = settled
    sent = f"steps up to {state.shipped_step}" if state.shipped_step > before else "nothing was missing"
    return f"MLflow run {state.run_id} at {state.tracking_uri}: {sent}, status {state.status}"


def sync_mirror(run_dir: Path) -> str | None:
    """Copy to a run's mirror what it lacks; return a line on it, None if the run has no mirror or is being trained.

    Raises:
        MirrorError: the mirror does not take it.
    """
    from pipeline.run.mirror_files import read_target
    from pipeline.run.status import run_state

    if read_target(run_dir) is None or run_state(run_dir) == "running":
        return None
    from pipeline.mirror.worker import complete

    return complete(run_dir)


def unsent_runs(runs: list[Path]) -> list[Path]:
    """Return the runs that MLflow or the mirror have not taken everything of, or whose end MLflow may not know."""
    from pipeline.run.mirror_files import lacks_something
    from pipeline.tracking.settle import is_settled, may_go_on
    from pipeline.tracking.state import load_state

    states = {run: load_state(run) for run in runs}
    unsent = [run for run, state in states.items() if state is None or not is_settled(state) or may_go_on(state.status)]
    return [run for run in runs if run in unsent or lacks_something(run)]


def settle_ended(run_dir: Path, jobs: "Jobs") -> None:
    """Tell MLflow that a run has ended, if nobody could before; a server that does not answer is asked only once.

    Args:
        run_dir: of the run.
        jobs: what the cluster says of it.
    """
    from pipeline.tracking.state import load_state

    state = load_state(run_dir)
    if state is None or state.status not in ("RUNNING", "SCHEDULED"):
        return
    from pipeline.tracking.settle import settle_after_end

    settle_after_end(run_dir, failure=jobs.failure(run_dir), timeout_s=5, retries=0)
