"""Sends MLflow all that it lacks of a run that is not being trained: metrics, report, status.

Each contact with a server that succeeds ends with it, so that nothing stays behind that a server once refused.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.run.files import durable_step
from pipeline.run.report import write_report
from pipeline.run.status import run_state
from pipeline.tracking.client import TrackingError, describe_failure, mlflow_session
from pipeline.tracking.shipper import EVERYTHING, Shipper
from pipeline.tracking.state import TrackingState, load_state, shipping_lock

logger = logging.getLogger(__name__)


def is_settled(state: TrackingState | None) -> bool:
    """Whether MLflow has everything of a run with this state."""
    return state is not None and state.sent_status == state.status and state.behind_since is None


def settle(run_dir: Path, has_no_job: Callable[[], bool] = lambda: False) -> tuple[TrackingState, int] | None:
    """Send what MLflow lacks of a run; do nothing while the run is being trained, since it sends by itself.

    Steps after the newest checkpoint are sent only if the training has finished: a resumed run computes them again.

    Args:
        run_dir: the run's folder.
        has_no_job: whether the job of a run that never started has ended.

    Returns:
        The state afterwards, and the last step that the server had before; None if nothing was done.

    Raises:
        TrackingError: the server does not answer, or refuses what is sent.
        PipelineError: the folder is no run, or is tracked elsewhere.
    """
    with shipping_lock(run_dir, wait=False) as is_free:
        if not is_free:
            return None
        shipper = Shipper(run_dir)
        before = shipper.state.shipped_step
        run = run_state(run_dir)
        never_started = run == "submitted" and has_no_job()
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
        except PipelineError:
            raise
        except Exception as error:
            raise TrackingError(describe_failure(error, f"MLflow at {shipper.uri} does not take it")) from error
    return shipper.state, before


def settle_after_contact(run_dir: Path) -> None:
    """Settle a run whose server has just answered, unless it lacks nothing; log why if that fails."""
    state = load_state(run_dir)
    # A run that still counts as running there may have been ended before it could tell its end.
    if state is not None and is_settled(state) and state.status != "RUNNING":
        return
    try:
        settle(run_dir)
    except (PipelineError, OSError) as error:
        logger.warning("%s; send the rest with: python -m pipeline.status --sync %s", error, run_dir)
