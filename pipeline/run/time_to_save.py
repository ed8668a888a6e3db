"""Whether a run that is asked to stop has the time to save: what it needs, as measured, against what it is told."""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from jobs import Notice, too_short
from pipeline.run.files import read_events, read_metrics

RECENT = 50
"""Steps whose median counts."""
LEAST_STEPS = 3
"""Fewer say nothing: the first are slow."""


@dataclass(kw_only=True)
class Needs:
    """What stands between a request to stop and the saved state, in seconds; filled while a training goes on."""

    steps: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    """The newest steps."""
    evaluation: float = 0.0
    """The newest evaluation, which a request has to wait for."""
    save: float | None = None
    """The newest save, from its start to the published checkpoint."""

    @classmethod
    def of_run(cls, run_dir: Path) -> Self:
        """As the attempts of a run have measured it so far."""
        needs = cls()
        needs.steps.extend(r["step_s"] for r in read_metrics(run_dir) if "step_s" in r)
        for event in read_events(run_dir):
            needs.note(str(event.get("event")), float(event.get("seconds", 0.0)))
        return needs

    def note(self, event: str, seconds: float) -> None:
        """Take in an event of the book of attempts."""
        if event == "evaluate":
            self.evaluation = seconds
        elif event == "saved":
            self.save = seconds

    @property
    def seconds(self) -> float | None:
        """All of it together; None before it was measured."""
        if self.save is None or len(self.steps) < LEAST_STEPS:
            return None
        return statistics.median(self.steps) + self.evaluation + self.save


def warnings(needs: Needs, known: Sequence[Notice]) -> list[str]:
    """A sentence for each notice that is too short; none before anything was measured."""
    seconds = needs.seconds
    if seconds is None or needs.save is None:
        return []
    parts = [f"a step of {statistics.median(needs.steps):.1f} s"]
    if needs.evaluation:
        parts.append(f"an evaluation of {needs.evaluation:.1f} s")
    need = f"asked to stop, this run needs up to {seconds:.0f} s ({', '.join(parts)} and a save of {needs.save:.1f} s)"
    return [f"{need}, but {notice.describe_shortage(seconds)}" for notice in too_short(known, seconds)]
