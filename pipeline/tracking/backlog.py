"""Messages about a run whose MLflow server takes nothing: how many steps wait, since when, and that none is lost."""

import time
from collections.abc import Iterator

from pipeline.common.console import duration
from pipeline.tracking.state import TrackingState

KEPT = "they are kept in metrics.jsonl and sent when it answers"


def steps_waiting(state: TrackingState | None, step: int) -> int:
    """Return how many of `step` finished steps the server has missed; 0 while it answers."""
    if state is None or state.behind_since is None:
        return 0
    return max(0, step - max(0, state.shipped_step))


def describe_backlog(state: TrackingState | None, step: int, now: float) -> str | None:
    """Describe which of `step` finished steps wait for the server; None while it answers.

    Args:
        state: the run's tracking state; None before a tracker has started.
        step: number of finished steps.
        now: current time, in unix seconds.
    """
    if state is None or state.behind_since is None:
        return None
    steps = steps_waiting(state, step)
    waiting = f"{steps:,} steps wait" if steps else "status and report wait"
    since = time.strftime("%H:%M:%S", time.localtime(state.behind_since))
    return (
        f"{waiting} for MLflow at {state.tracking_uri}, which has received nothing since {since} "
        f"({duration(max(0.0, now - state.behind_since))}): {state.problem}"
    )


class BacklogWatch:
    """Reports when a run's server stops taking what is sent, and when it takes it again."""

    def __init__(self) -> None:
        self._is_behind = False

    def look(self, state: TrackingState | None, step: int) -> Iterator[str]:
        """Yield a line if the server stopped, or began again, since the last look."""
        backlog = describe_backlog(state, step, time.time())
        if backlog is not None and not self._is_behind:
            yield f"tracking is behind: {backlog}; {KEPT}"
        elif backlog is None and self._is_behind:
            yield "MLflow takes what is sent again; nothing was lost"
        self._is_behind = backlog is not None
