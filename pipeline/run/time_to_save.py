"""Whether a run that is asked to stop has enough time to save: the measured need against the given notice."""

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from jobs import Notice, too_short
from pipeline.run.files import read_events, read_metrics
from pipeline.run.mirror_files import INTERRUPTED_S, read_target

RECENT = 50
"""Number of the newest steps whose median is taken."""
LEAST_STEPS = 3
"""Fewer steps are no measurement: the first ones are slow."""


@dataclass(kw_only=True)
class TimeToSave:
    """Measured seconds of everything between a request to stop and a published checkpoint."""

    steps: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    """Seconds of the newest steps."""
    save: float | None = None
    """Seconds of the newest save, from its start to the published checkpoint; None before the first one."""
    evaluation_end: float = 0.0
    """Seconds of the newest evaluation after its last batch (scores, pictures), in which it cannot be interrupted."""
    mirror: float = 0.0
    """Seconds that the mirror may take before the job is queued again."""

    @classmethod
    def of_run(cls, run_dir: Path) -> Self:
        """Return what the attempts of a run have measured so far."""
        measured = cls(mirror=mirror_seconds(run_dir))
        measured.steps.extend(r["step_s"] for r in read_metrics(run_dir) if "step_s" in r)
        for event in read_events(run_dir):
            measured.note(event)
        return measured

    def note(self, event: Mapping[str, Any]) -> None:
        """Keep the times of an event of the attempt log, if it is a save or an evaluation."""
        if event.get("event") == "saved":
            self.save = float(event.get("seconds", 0.0))
        if event.get("event") == "evaluate":
            self.evaluation_end = float(event.get("end_s", self.evaluation_end))

    @property
    def seconds(self) -> float | None:
        """Sum of a step, a save, the end of an evaluation and that of the mirror; None until the first two are known.

        The batches of an evaluation do not count: it is interrupted between them.
        """
        if self.save is None or len(self.steps) < LEAST_STEPS:
            return None
        return statistics.median(self.steps) + self.save + self.evaluation_end + self.mirror


def mirror_seconds(run_dir: Path) -> float:
    """Return the seconds for which the end of an interrupted attempt waits for the mirror of a run at the longest."""
    return 0.0 if read_target(run_dir) is None else INTERRUPTED_S


def describe_short_notices(need: TimeToSave, notices: Sequence[Notice]) -> list[str]:
    """Return a sentence for each notice that is too short; none before the need was measured."""
    seconds = need.seconds
    if seconds is None or need.save is None:
        return []
    end = f", the end of an evaluation of {need.evaluation_end:.1f} s" if need.evaluation_end else ""
    parts = f"a step of {statistics.median(need.steps):.1f} s{end} and a save of {need.save:.1f} s"
    if need.mirror:
        parts += f", then {need.mirror:.0f} s for its mirror"
    needed = f"asked to stop, this run needs up to {seconds:.0f} s ({parts})"
    return [f"{needed}, but {notice.describe_shortage(seconds)}" for notice in too_short(notices, seconds)]
