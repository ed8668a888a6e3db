"""Goodput: the share of a run's time that went into steps which count, and where the rest went.

Two files of the run give it. `metrics.jsonl` has the seconds of each step that counts, and the share of them
that waited for data. `attempts.jsonl` has the start of each attempt, its first step, every save and evaluation, and its
end. An attempt that resumes also writes which steps of the previous attempt it computes again.
"""

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class TimeSpent:
    """Seconds of an attempt, or of a run with all its attempts; the parts add up to `wall`."""

    wall: float = 0.0
    """From the start of the first process to the last record or event."""
    productive: float = 0.0
    """Steps that count, without their wait for data."""
    data_wait: float = 0.0
    """Waiting for the samples of steps that count."""
    restart: float = 0.0
    """From the start of a process to its first step: imports, process group, index, network, checkpoint."""
    save: float = 0.0
    """Steps held up by a checkpoint: its snapshot, and the wait for a previous or the last checkpoint to be written."""
    evaluation: float = 0.0
    """Evaluating on the validation split."""
    lost: float = 0.0
    """Steps after the newest checkpoint of an attempt that was killed, which the next attempt computed again."""
    down: float = 0.0
    """Between two attempts: in the queue, or not launched."""
    other: float = 0.0
    """The rest: records, the export, the registration, the time-out for a hanging rank."""

    @property
    def goodput(self) -> float:
        """Productive time over wall time, in [0, 1]."""
        return min(1.0, self.productive / self.wall) if self.wall > 0 else 0.0

    def describe(self) -> str:
        """Describe it in one line: the goodput, then every part of at least 0.05 s, the largest first."""
        parts = {name: value for name, value in asdict(self).items() if name not in ("wall", "productive")}
        shown = sorted(((v, n) for n, v in parts.items() if v >= 0.05), reverse=True)
        rest = ", ".join(f"{name.replace('_', ' ')} {value:.1f} s" for value, name in shown)
        return f"goodput {100 * self.goodput:.1f} % of {self.wall:.1f} s: steps {self.productive:.1f} s" + (
            f", {rest}" if rest else ""
        )

    def rounded(self) -> dict[str, float]:
        """Return the fields, rounded to milliseconds."""
        return {name: round(value, 3) for name, value in asdict(self).items()}

    @classmethod
    def total(cls, parts: Iterable[Self]) -> Self:
        """Return the sum, field by field."""
        parts = list(parts)
        return cls(**{f.name: sum(getattr(part, f.name) for part in parts) for f in fields(cls)})


def attempts_spent(events: Iterable[dict[str, Any]], records: Iterable[dict[str, Any]]) -> dict[int, TimeSpent]:
    """Return the time of each attempt by its number.

    Args:
        events: events of `attempts.jsonl`, in the order of the file.
        records: records of `metrics.jsonl`.
    """
    by_attempt: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        by_attempt[int(event.get("attempt", 1))].append(event)
    steps: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        steps[int(record.get("attempt", 1))].append(record)
    lost: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for number, mine in by_attempt.items():
        for event in mine:
            if event.get("lost_s"):
                # A resumed attempt records the steps that it drops; the previous attempt had computed them.
                lost[number - 1 if event["event"] == "start" else number].append(event)
    return {
        number: _spent(by_attempt[number], steps[number], lost[number])
        for number in sorted(by_attempt.keys() | steps.keys())
    }


def run_spent(events: Iterable[dict[str, Any]], records: Iterable[dict[str, Any]]) -> TimeSpent:
    """Return the time of a whole run, with the gaps between its attempts; all zero without events and records."""
    events, records = list(events), list(records)
    attempts = attempts_spent(events, records)
    if not attempts:
        return TimeSpent()
    total = TimeSpent.total(attempts.values())
    seen = [e["time"] for e in [*events, *records]] + [e["began"] for e in events if "began" in e]
    down = max(0.0, max(seen) - min(seen) - total.wall)
    return TimeSpent(**asdict(total) | {"down": down, "wall": total.wall + down})


def _spent(events: list[dict[str, Any]], records: list[dict[str, Any]], lost: list[dict[str, Any]]) -> TimeSpent:
    """Return the time of one attempt; a clock that goes backwards makes parts zero, never negative."""
    seconds = sum(float(r.get("step_s", 0)) for r in records)
    waited = sum(float(r.get("step_s", 0)) * float(r.get("data_wait", 0)) for r in records)
    times = [e["time"] for e in [*events, *records]]
    times += [e["began"] for e in events if "began" in e] + [e["lost_until"] for e in lost if "lost_until" in e]
    known = {
        "productive": seconds - waited,
        "data_wait": waited,
        # The start-up ends with the first step, which counts as a step; an evaluation in it has an event of its own.
        "restart": sum(
            e.get("seconds", 0) - sum(e.get("parts", {}).get(part, 0) for part in ("first step", "evaluation"))
            for e in events
            if e["event"] == "first_step"
        ),
        "save": sum(float(e.get("stall_s", 0)) for e in events if e["event"] in ("save", "saved")),
        "evaluation": sum(float(e.get("seconds", 0)) for e in events if e["event"] == "evaluate"),
        "lost": sum(float(e["lost_s"]) for e in lost),
    }
    wall = max(sum(known.values()), max(times, default=0.0) - min(times, default=0.0))
    return TimeSpent(wall=wall, **known, other=wall - sum(known.values()))


class StartUp:
    """Stopwatch of this process's start-up, in parts."""

    def __init__(self) -> None:
        """Start with a first part, `launch`: the time since the process began."""
        import psutil

        self.began = psutil.Process().create_time()
        """Start of the process, in unix seconds."""
        self._last = time.monotonic()
        self.parts: dict[str, float] = {"launch": max(0.0, time.time() - self.began)}
        """Seconds of each part, in order."""

    def lap(self, part: str) -> None:
        """Add the time since the last call to `part`."""
        now = time.monotonic()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now

    @property
    def seconds(self) -> float:
        """Sum of all parts."""
        return sum(self.parts.values())

    def describe(self) -> str:
        """Describe it in one line: `first step 9.3 s after the start of the process (launch 0.5, imports 3.1, …)`."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.parts.items())
        return f"first step {self.seconds:.1f} s after the start of the process ({parts})"
