"""Sends MLflow what it missed while its server did not answer (`pipeline.status --sync`)."""

from pathlib import Path


def sync_run(run_dir: Path) -> str:
    """Send MLflow what it lacks of a run; return a line on what was sent.

    Steps after the newest checkpoint are sent only if the training has finished: a resumed run computes them again.

    Raises:
        TrackingError: the server does not answer, or refuses what is sent.
        ValueError: the folder is no run.
    """
    from pipeline.status.jobs import Jobs
    from pipeline.tracking.settle import settle

    settled = settle(run_dir, lambda: Jobs().has_ended(run_dir))
    if settled is None:
        return f"{run_dir} is being trained and sends by itself; nothing to do"
    state, before = settled
    sent = f"steps up to {state.shipped_step}" if state.shipped_step > before else "nothing was missing"
    return f"MLflow run {state.run_id} at {state.tracking_uri}: {sent}, status {state.status}"


def unsent_runs(runs: list[Path]) -> list[Path]:
    """Return the runs that MLflow has not taken everything of."""
    from pipeline.tracking.settle import is_settled
    from pipeline.tracking.state import load_state

    return [run for run in runs if not is_settled(load_state(run))]
