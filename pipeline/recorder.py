"""What rank 0 tells of a training: the journal, the attempts, the log's lines, and MLflow through the tracker."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from pipeline.distributed import World
from pipeline.journal import Journal
from pipeline.words import duration

ATTEMPTS = "attempts.jsonl"
"""Events of every attempt: start, save, evaluate, end; one JSON object a line with `attempt` and `time`."""


def say(message: str) -> None:
    """One line in the log, with the time of day."""
    print(f"{time.strftime('%H:%M:%S')}  {message}", flush=True)


def read_attempts(run_dir: Path) -> list[dict[str, Any]]:
    """The events of all attempts, oldest first; a line that a kill cut short is left out."""
    try:
        lines = (run_dir / ATTEMPTS).read_text().splitlines()
    except FileNotFoundError:
        return []
    events = []
    for line in lines:
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


class Recorder:
    """Writes on rank 0 and does nothing elsewhere, so that the loop needs no rank tests."""

    def __init__(self, run_dir: Path, world: World) -> None:
        """Count this attempt; nothing is written before `open`."""
        self._run_dir = run_dir
        self._main = world.is_main
        self._world = world
        self._journal: Journal | None = None
        self._warned = False
        self._last_line: tuple[float, int] | None = None
        self.attempt = 1 + max((e["attempt"] for e in read_attempts(run_dir)), default=0) if self._main else 0

    def open(self, step: int) -> None:
        """Start to record after `step` finished steps; later records in the journal are dropped."""
        if not self._main:
            return
        self.close()
        self._journal = Journal(self._run_dir, step)
        self.event("start", step=step, world_size=self._world.size)

    def event(self, kind: str, **fields: Any) -> None:
        """Add a line to the book of attempts; a full disk costs the line, not the training."""
        if not self._main:
            return
        line = json.dumps({"event": kind, "attempt": self.attempt, "time": time.time(), **fields}) + "\n"
        try:
            with (self._run_dir / ATTEMPTS).open("a") as file:
                file.write(line)
        except OSError as error:
            self.warn(f"{ATTEMPTS} could not be written ({error.strerror})")

    def step(self, record: dict[str, Any]) -> None:
        """Add the record of a finished step to the journal."""
        if self._journal is None:
            return
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
        """One line in rank 0's log and on its error stream."""
        if self._main:
            say(f"warning: {message}")
            print(f"warning: {message}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Make the journal durable."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
