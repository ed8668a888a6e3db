"""What rank 0 tells of a training: the journal, the attempts, the log's lines, and MLflow through the tracker."""

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

from jobs import notices_from_environment
from pipeline.common.console import duration
from pipeline.common.errors import TrainingError
from pipeline.run.files import ATTEMPTS_NAME, read_events
from pipeline.run.goodput import StartUp, TimeSpent, attempts_spent
from pipeline.run.journal import Journal
from pipeline.run.time_to_save import Needs, warnings


def say(message: str) -> None:
    """One line in the log, with the time of day; a log that cannot be written (a full disk) stops nothing."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%H:%M:%S')}  {message}", flush=True)


class Recorder:
    """Writes on rank 0 and does nothing elsewhere, so that the loop needs no rank tests."""

    def __init__(self, run_dir: Path, *, is_main: bool, world_size: int, start_up: StartUp | None = None) -> None:
        """Count this attempt; nothing is written before `open`. `start_up` runs since the process began."""
        self._run_dir = run_dir
        self._main = is_main
        self._world_size = world_size
        self._journal: Journal | None = None
        self._warned = False
        self._last_line: tuple[float, int] | None = None
        self._start_up = start_up
        self._starting = start_up is not None
        self._opened = False
        self._events: list[dict[str, Any]] = []
        self._step_s = self._wait_s = 0.0
        self._needs = Needs()
        self._told = notices_from_environment() if self._main else []
        self.attempt = 1 + max((e["attempt"] for e in read_events(run_dir)), default=0) if self._main else 0

    def open(self, step: int) -> None:
        """Start to record after `step` finished steps; later records in the journal are dropped."""
        if not self._main:
            return
        self.close()
        self._journal = Journal(self._run_dir, step)
        dropped = self._journal.dropped
        seconds = sum(float(record.get("step_s", 0)) for record in dropped)
        lost = {"lost_steps": len(dropped), "lost_s": seconds, "lost_until": dropped[-1]["time"]} if dropped else {}
        if self._opened:
            self._step_s -= seconds
            self.event("back", step=step, **lost)
        else:
            began = {} if self._start_up is None else {"began": self._start_up.began}
            self.event("start", step=step, world_size=self._world_size, **began, **lost)
        self._opened = True

    def lap(self, part: str) -> None:
        """The time since the last call went into this part of the start-up."""
        if self._start_up is not None:
            self._start_up.lap(part)

    def event(self, kind: str, **fields: Any) -> None:
        """Add a line to the book of attempts; a full disk costs the line, not the training.

        Raises:
            TrainingError: the run directory was removed.
        """
        if not self._main:
            return
        event = {"event": kind, "attempt": self.attempt, "time": time.time(), **fields}
        self._events.append(event)
        line = json.dumps(event) + "\n"
        try:
            with (self._run_dir / ATTEMPTS_NAME).open("a") as file:
                file.write(line)
        except OSError as error:
            if not self._run_dir.exists():
                raise TrainingError(f"{self._run_dir} is gone: nothing of this training can be kept") from None
            self.warn(f"{ATTEMPTS_NAME} could not be written ({error.strerror})")
        self._needs.note(kind, float(fields.get("seconds", 0.0)))
        if kind == "saved" and self._needs.seconds is not None:
            for words in warnings(self._needs, self._told):
                self.warn(words)
            # Once an attempt is enough.
            self._told = []

    def step(self, record: dict[str, Any]) -> None:
        """Add the record of a finished step to the journal; the first one ends the start-up."""
        if self._journal is None:
            return
        if self._starting and self._start_up is not None:
            self._starting = False
            self._start_up.lap("first step")
            parts = {name: round(seconds, 3) for name, seconds in self._start_up.parts.items()}
            self.event("first_step", seconds=round(self._start_up.seconds, 3), parts=parts)
            self.say(self._start_up.words())
        self._step_s += record["step_s"]
        self._wait_s += record["step_s"] * record["data_wait"]
        self._needs.steps.append(record["step_s"])
        error = self._journal.append({**record, "attempt": self.attempt})
        if error is not None and not self._warned:
            self.warn(f"metrics.jsonl could not be written ({error.strerror or error}); kept in memory and tried again")
        self._warned = error is not None

    def progress(self, record: dict[str, Any], total_steps: int, epoch: float) -> None:
        """One plain line on how the training stands, with the rate and the time that remains since the last line."""
        if not self._main:
            return
        now, step = time.monotonic(), record["step"]
        before, self._last_line = self._last_line, (now, step)
        remaining = ""
        if before is not None and step > before[1]:
            seconds = (now - before[0]) / (step - before[1]) * (total_steps - step)
            remaining = f"  remaining {duration(seconds)}"
        loss = math.nan if record["loss"] is None else record["loss"]
        say(
            f"step {step}/{total_steps}  epoch {epoch:.2f}  loss {loss:.4f}  lr {record['lr']:.2e}  "
            f"{record['images_per_s']:.0f} images/s  waiting for data {100 * record['data_wait']:.1f} %{remaining}"
        )

    def say(self, message: str) -> None:
        """One line in rank 0's log."""
        if self._main:
            say(message)

    def warn(self, message: str) -> None:
        """A warning, one line in rank 0's log."""
        self.say(f"warning: {message}")

    def time_spent(self) -> TimeSpent:
        """Where the time of this attempt went, up to now."""
        wait = self._wait_s / self._step_s if self._step_s else 0.0
        steps = {"attempt": self.attempt, "time": time.time(), "step_s": self._step_s, "data_wait": wait}
        return attempts_spent(self._events, [steps])[self.attempt]

    def end(self, outcome: str) -> None:
        """Write down and say how the attempt ended, and where its time went."""
        if self._main:
            spent = self.time_spent()
            self.event("end", outcome=outcome, time_spent=spent.rounded())
            if self._opened:
                self.say(f"attempt {self.attempt}: {spent.words()}")
        self.close()

    def sync(self) -> None:
        """Make the journal durable up to the last step; `OSError` where it does not fit on the disk."""
        if self._journal is not None:
            self._journal.sync()

    def close(self) -> None:
        """Make the journal durable."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
