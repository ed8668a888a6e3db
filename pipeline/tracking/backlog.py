"""What people are told while MLflow takes nothing of a run: how much waits, since when, what becomes of it."""

import time
from collections.abc import Iterator

from pipeline.common.console import duration
from pipeline.tracking.state import TrackingState

KEPT = "they are kept in metrics.jsonl and sent when it answers"


def steps_waiting(state: TrackingState | None, step: int) -> int:
    """Finished steps that a server which does not answer has missed so far; 0 where it answers."""
    if state is None or state.behind_since is None:
        return 0
    return max(0, step - max(0, state.shipped_step))


def behind_words(state: TrackingState | None, step: int, now: float) -> str | None:
    """A sentence on what a run's server has missed up to `step`; None where it answers."""
    if state is None or state.behind_since is None:
        return None
    since = time.strftime("%H:%M:%S", time.localtime(state.behind_since))
    return (
        f"{steps_waiting(state, step):,} steps wait for MLflow at {state.tracking_uri}, which takes nothing since "
        f"{since} ({duration(max(0.0, now - state.behind_since))}): {state.problem}"
    )


class BehindWatch:
    """Notices when a run's server stops taking what is sent, and when it takes it again."""

    def __init__(self) -> None:
        self._behind = False

    def look(self, state: TrackingState | None, step: int) -> Iterator[str]:
        """Yield a line where that has changed since the last look."""
        words = behind_words(state, step, time.time())
        if words is not None and not self._behind:
            yield f"tracking is behind: {words}; {KEPT}"
        elif words is None and self._behind:
            yield "MLflow takes what is sent again; nothing was lost"
        self._behind = words is not None
