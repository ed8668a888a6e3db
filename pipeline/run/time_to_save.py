"""Whether a run that is asked to stop has enough time to save: the measured need against the given notice."""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from jobs import Notice, too_short
from pipeline.run.files import read_events, read_metrics

RECENT = 50
"""Number of the newest steps whose median is taken."""
LEAST_STEPS = 3
"""Fewer steps are no measurement: the first ones are slow."""


@dataclass(kw_only=True)
class TimeToSave:
    """Measured seconds of everything between a request to stop and a published checkpoint."""

    steps: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    """Seconds of the newest steps."""
    evaluation: float = 0.0
    """Seconds of the newest evaluation, which runs to its end first."""
    save: float | None = None
    """Seconds of the newest save, from its start to the published checkpoint; None before the first one."""

    @classmethod
    def of_run(cls, run_dir: Path) -> Self:
        """Return what the attempts of a run have measured so far."""
        measured = cls()
        measured.steps.extend(r["step_s"] for r in read_metrics(run_dir) if "step_s" in r)
        for event in read_events(run_dir):
            measured.note(str(event.get("event")), float(event.get("seconds", 0.0)))
        return measured

    def note(self, event: str, seconds: float) -> None:
        """Keep the time of an event of the attempt log, if it is an evaluation or a save."""
        if event == "evaluate":
            self.evaluation = seconds
        elif event == "saved":
            self.save = seconds

    @property
    def seconds(self) -> float | None:
        """Sum of a step, an evaluation and a save; None until steps and a save were measured."""
        if self.save is None or len(self.steps) < LEAST_STEPS:
            return None
        return statistics.median(self.steps) + self.evaluation + self.save


def describe_short_notices(need: TimeToSave, notices: Sequence[Notice]) -> list[str]:
    """Return a sentence for each notice that is too short; none before the need was measured."""
    seconds = need.seconds
    if seconds is None or need.save is None:
        return []
    parts = [f"a step of {statistics.median(need.steps):.1f} s"]
    if need.evaluation:
        parts.append(f"an evaluation of {need.evaluation:.1f} s")
    needed = f"asked to stop, this run needs up to {seconds:.0f} s ({', '.join(parts)} and a save of {need.save:.1f} s)"
    return [f"{needed}, but {notice.describe_shortage(seconds)}" for notice in too_short(notices, seconds)]
