"""Sends MLflow all that it lacks of a run that is not being trained: metrics, report, status.

Each contact with a server that succeeds ends with it, so that nothing stays behind that a server once refused.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from pipeline.common.errors import PipelineError
from pipeline.run.files import durable_step
from pipeline.run.report import write_report
from pipeline.run.status import State, run_state
from pipeline.tracking.client import TrackingError, describe_failure, mlflow_session
from pipeline.tracking.shipper import END_STATUSES, EVERYTHING, Shipper
from pipeline.tracking.state import TrackingState, load_state, shipping_lock

logger = logging.getLogger(__name__)


def is_settled(state: TrackingState | None) -> bool:
    """Whether MLflow has everything of a run with this state."""
    return state is not None and state.sent_status == state.status and state.behind_since is None


def settle(
    run_dir: Path,
    has_no_job: Callable[[], bool] = lambda: False,
    *,
    has_failed: bool = False,
    failure: Callable[[], str] = str,
    timeout_s: int = 20,
    retries: int = 1,
) -> tuple[TrackingState, int] | None:
    """Send what MLflow lacks of a run; do nothing while the run is being trained, since it sends by itself.

    Steps after the newest checkpoint are sent only if the training has finished: a resumed run computes them again.

    Args:
        run_dir: the run's folder.
        has_no_job: whether no job will start the run, or go on with it. Then a run that waits for its next attempt, or
            never started, is KILLED.
        has_failed: whether its job has failed, as far as the caller knows: the run is then FAILED instead of KILLED.
        failure: returns how its job has failed, empty if it has not; asked only where no attempt has recorded an end.
        timeout_s: how long the server may take for an answer.
        retries: how often a request that fails is repeated.

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
        end = _unrecorded_end(run_state(run_dir), shipper.state.status, has_no_job)
        if end is not None:
            cause = failure().strip().partition("\n")[0] if end == "KILLED" else ""
            hint = f"launch again with --run-dir {run_dir}: {cause}" if cause else ""
            is_failure = end == "KILLED" and (has_failed or bool(cause))
            shipper.end("FAILED" if is_failure else end, hint)
        try:
            with mlflow_session(shipper.uri, timeout_s=timeout_s, retries=retries):
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


def _unrecorded_end(run: State, status: str, has_no_job: Callable[[], bool]) -> str | None:
    """Return the status of a run that has ended, where no attempt recorded it; None: it goes on, or has its status.

    The tracking worker may have been killed together with the training, or never have started. The job may have been
    cancelled while it waited for its next attempt.

    Args:
        run: state of the run, from its files.
        status: status that the run has, or should have, in MLflow.
        has_no_job: as for `settle`.
    """
    if not may_go_on(status):
        return None
    # After an attempt that was interrupted its worker may have been killed before it sent that (RUNNING).
    waits = run == "submitted" or (run == "interrupted" and status == "SCHEDULED")
    if run == "running" or (waits and not has_no_job()):
        return None
    return {"finished": "FINISHED", "failed": "FAILED"}.get(run, "KILLED")


def settle_after_end(
    run_dir: Path, *, has_failed: bool = False, failure: str = "", timeout_s: int = 20, retries: int = 1
) -> None:
    """Tell MLflow that a run has ended whose job will not go on, if no attempt could tell it; log why if that fails.

    A run that never started is not made known to MLflow for it. Where the server did not answer the attempt, that has
    logged how to send the rest.

    Args:
        run_dir: the run's folder.
        has_failed: as for `settle`.
        failure: how its job has failed, as far as the cluster or the logs tell; a rank that was killed cannot.
        timeout_s: as for `settle`.
        retries: as for `settle`.
    """
    state = load_state(run_dir)
    if state is None:
        return
    is_done = is_settled(state) or state.behind_since is not None
    if is_done and not may_go_on(state.status):
        return
    try:
        settle(
            run_dir, lambda: True, has_failed=has_failed, failure=lambda: failure, timeout_s=timeout_s, retries=retries
        )
    except (PipelineError, OSError) as error:
        logger.warning("%s; send the rest with: python -m pipeline.status --sync %s", error, run_dir)


def may_go_on(status: str) -> bool:
    """Whether a run with this status in MLflow is trained, or waits for its next attempt."""
    return status not in END_STATUSES


def settle_after_contact(run_dir: Path) -> None:
    """Settle a run whose server has just answered, unless it lacks nothing; log why if that fails."""
    state = load_state(run_dir)
    # A run that still counts as running there may have been ended before it could tell its end.
    if state is not None and is_settled(state) and not may_go_on(state.status):
        return
    try:
        settle(run_dir)
    except (PipelineError, OSError) as error:
        logger.warning("%s; send the rest with: python -m pipeline.status --sync %s", error, run_dir)
