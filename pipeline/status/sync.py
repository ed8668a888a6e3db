"""Sends MLflow what it missed while its server did not answer (`pipeline.status --sync`)."""

from pathlib import Path


def sync_run(run_dir: Path) -> str:
    """Send MLflow what it lacks of a run; return a line on what was sent.

    Steps after the newest checkpoint are sent only if the training has finished: a resumed run computes them again.

    Raises:
        TrackingError: the server does not answer, or refuses what is sent.
        ValueError: the folder is no run.
    """
    from pipeline.common.errors import one_line
    from pipeline.common.secrets import mask_secrets
    from pipeline.run.files import durable_step
    from pipeline.run.report import write_report
    from pipeline.run.status import run_state
    from pipeline.status.jobs import Jobs
    from pipeline.tracking.client import TrackingError, mlflow_session
    from pipeline.tracking.shipper import EVERYTHING, Shipper
    from pipeline.tracking.state import shipping_lock

    with shipping_lock(run_dir, wait=False) as is_free:
        if not is_free:
            return f"{run_dir} is being trained and sends by itself; nothing to do"
        shipper = Shipper(run_dir)
        before = shipper.state.shipped_step
        run = run_state(run_dir)
        never_started = run == "submitted" and Jobs().has_ended(run_dir)
        if shipper.state.status == "RUNNING" and (never_started or run not in ("running", "submitted")):
            # The tracking worker was killed together with the training, or never started: it recorded no end.
            shipper.end({"finished": "FINISHED", "failed": "FAILED"}.get(run, "KILLED"))
        try:
            with mlflow_session(shipper.uri, timeout_s=20, retries=1):
                shipper.ship(EVERYTHING if shipper.state.status == "FINISHED" else durable_step(run_dir))
                shipper.send_status()
                write_report(run_dir)
                shipper.send_report()
                shipper.mark_caught_up()
        except TrackingError:
            raise
        except Exception as error:
            raise TrackingError(f"MLflow at {mask_secrets(shipper.uri)} does not take it: {one_line(error)}") from error
    state = shipper.state
    sent = f"steps up to {state.shipped_step}" if state.shipped_step > before else "nothing was missing"
    return f"MLflow run {state.run_id} at {state.tracking_uri}: {sent}, status {state.status}"


def unsent_runs(runs: list[Path]) -> list[Path]:
    """Return the runs that MLflow has not taken everything of."""
    from pipeline.tracking.state import load_state

    states = {run: load_state(run) for run in runs}
    return [run for run, state in states.items() if state is None or state.sent_status != state.status]
