"""Where the time of a run went: steps that count, and what stood between them. Read from the run's own files.

Everything comes from two files: `metrics.jsonl` has the seconds of each step that counts and the share that waited for
data; `attempts.jsonl` has an attempt's begin, its first step, every save and evaluation, its end, and, written by the
attempt that resumed, what the one before had computed in vain.
"""

import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class TimeSpent:
    """Seconds of an attempt, or of a run over all its attempts; the parts add up to `wall`."""

    wall: float = 0.0
    """From the start of the first process to the last sign of life."""
    productive: float = 0.0
    """Steps that count, without their wait for data."""
    data_wait: float = 0.0
    """Waiting for the samples of steps that count."""
    restart: float = 0.0
    """From the start of a process to its first step: imports, ranks, index, network, checkpoint."""
    save: float = 0.0
    """Steps held up by a checkpoint: the snapshot, and waiting for the write of the one before or of the last."""
    evaluation: float = 0.0
    """Evaluating on the validation split."""
    lost: float = 0.0
    """Steps after the newest checkpoint of an attempt that was killed: computed, and computed again."""
    down: float = 0.0
    """Between two attempts: the queue, or nobody launching."""
    other: float = 0.0
    """The rest: records, the export, registration, the time until a hanging rank is given up."""

    @property
    def goodput(self) -> float:
        """Productive time over wall time, in [0, 1]."""
        return min(1.0, self.productive / self.wall) if self.wall > 0 else 0.0

    def words(self) -> str:
        """One line: the goodput, then every part that is not nothing, the largest first."""
        parts = {name: value for name, value in asdict(self).items() if name not in ("wall", "productive")}
        shown = sorted(((v, n) for n, v in parts.items() if v >= 0.05), reverse=True)
        rest = ", ".join(f"{name.replace('_', ' ')} {value:.1f} s" for value, name in shown)
        return f"goodput {100 * self.goodput:.1f} % of {self.wall:.1f} s: steps {self.productive:.1f} s" + (
            f", {rest}" if rest else ""
        )

    def rounded(self) -> dict[str, float]:
        """The fields as a record, to the millisecond."""
        return {name: round(value, 3) for name, value in asdict(self).items()}

    @classmethod
    def together(cls, parts: Iterable[Self]) -> Self:
        """The sum of several."""
        parts = list(parts)
        return cls(**{f.name: sum(getattr(part, f.name) for part in parts) for f in fields(cls)})


def attempts_spent(events: Iterable[dict[str, Any]], records: Iterable[dict[str, Any]]) -> dict[int, TimeSpent]:
    """Time spent by each attempt, by its number.

    Args:
        events: of `attempts.jsonl`, in the order of the file.
        records: of `metrics.jsonl`.
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
                # A resumed attempt says what it dropped; its forerunner had computed it.
                lost[number - 1 if event["event"] == "start" else number].append(event)
    return {
        number: _spent(by_attempt[number], steps[number], lost[number])
        for number in sorted(by_attempt.keys() | steps.keys())
    }


def run_spent(events: Iterable[dict[str, Any]], records: Iterable[dict[str, Any]]) -> TimeSpent:
    """Time spent by a whole run, the gaps between its attempts included; all zero where nothing is known."""
    events, records = list(events), list(records)
    attempts = attempts_spent(events, records)
    if not attempts:
        return TimeSpent()
    total = TimeSpent.together(attempts.values())
    seen = [e["time"] for e in [*events, *records]] + [e["began"] for e in events if "began" in e]
    down = max(0.0, max(seen) - min(seen) - total.wall)
    return TimeSpent(**asdict(total) | {"down": down, "wall": total.wall + down})


def _spent(events: list[dict[str, Any]], records: list[dict[str, Any]], lost: list[dict[str, Any]]) -> TimeSpent:
    """One attempt's. A clock that goes backwards makes parts vanish, never negative."""
    seconds = sum(float(r.get("step_s", 0)) for r in records)
    waited = sum(float(r.get("step_s", 0)) * float(r.get("data_wait", 0)) for r in records)
    times = [e["time"] for e in [*events, *records]]
    times += [e["began"] for e in events if "began" in e] + [e["lost_until"] for e in lost]
    known = {
        "productive": seconds - waited,
        "data_wait": waited,
        # The start-up ends with the first step, which counts as a step.
        "restart": sum(e["seconds"] - e["parts"].get("first step", 0) for e in events if e["event"] == "first_step"),
        "save": sum(float(e.get("stall_s", 0)) for e in events if e["event"] in ("save", "saved")),
        "evaluation": sum(float(e.get("seconds", 0)) for e in events if e["event"] == "evaluate"),
        "lost": sum(float(e["lost_s"]) for e in lost),
    }
    wall = max(sum(known.values()), max(times, default=0.0) - min(times, default=0.0))
    return TimeSpent(wall=wall, **known, other=wall - sum(known.values()))


class StartUp:
    """A stopwatch over this process's start; the parts are in seconds and their sum is the whole."""

    def __init__(self) -> None:
        """Take what has passed since the process began as the first part, `launch`."""
        import psutil

        self.began = psutil.Process().create_time()
        """Unix seconds."""
        self._last = time.monotonic()
        self.parts: dict[str, float] = {"launch": max(0.0, time.time() - self.began)}
        """Seconds by name, in the order in which they began."""

    def lap(self, part: str) -> None:
        """Add the time since the last call to `part`."""
        now = time.monotonic()
        self.parts[part] = self.parts.get(part, 0.0) + now - self._last
        self._last = now

    @property
    def seconds(self) -> float:
        """All parts together."""
        return sum(self.parts.values())

    def words(self) -> str:
        """One line for the log: `first step 9.3 s after the start of the process (launch 0.5, imports 3.1, …)`."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.parts.items())
        return f"first step {self.seconds:.1f} s after the start of the process ({parts})"
