"""The records of an attempt: the journal, the attempt log, and the lines of rank 0's log."""

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

from jobs import notices_from_environment
from pipeline.common.console import format_remaining
from pipeline.common.errors import TrainingError
from pipeline.run.files import ATTEMPTS_NAME, read_events
from pipeline.run.goodput import StartUp, TimeSpent, attempts_spent
from pipeline.run.journal import Journal
from pipeline.run.time_to_save import TimeToSave, describe_short_notices, mirror_seconds


def log(message: str) -> None:
    """Print one line with the time of day; a log that cannot be written (a full disk) stops nothing."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%H:%M:%S')}  {message}", flush=True)


class Recorder:
    """Records one attempt at a run.

    Rank 0 writes the files and the log. On the other ranks the same calls write nothing, so that the training loop
    needs no rank tests; only the start-up's stopwatch runs there too.

    Attributes:
        attempt: number of this attempt, counted from 1; 0 on ranks other than 0.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        is_main: bool,
        world_size: int,
        device: str = "cpu",
        start_up: StartUp | None = None,
    ) -> None:
        """Number this attempt; `open` writes the first event.

        Args:
            run_dir: folder of the run.
            is_main: whether this is rank 0.
            world_size: number of ranks.
            device: kind of device that the ranks run on, `cpu` or `cuda`.
            start_up: stopwatch that runs since the process began.
        """
        self._run_dir = run_dir
        self._main = is_main
        self._place = {"world_size": world_size, "device": device}
        self._journal: Journal | None = None
        self._warned = False
        self._last_line: tuple[float, int] | None = None
        """Time and step of the last progress line."""
        self._start_up = start_up
        self._starting = start_up is not None
        self._opened = False
        self._events: list[dict[str, Any]] = []
        self._step_s = self._wait_s = 0.0
        self._time_to_save = TimeToSave(mirror=mirror_seconds(run_dir))
        self._notices = notices_from_environment() if self._main else []
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
            self.event("start", step=step, **self._place, **began, **lost)
        self._opened = True

    def lap(self, part: str) -> None:
        """Count the time since the last call as this part of the start-up."""
        if self._start_up is not None:
            self._start_up.lap(part)

    def event(self, kind: str, **fields: Any) -> None:
        """Append a line to the attempt log; if the disk is full, the line is lost and the training goes on.

        Raises:
            TrainingError: the run directory was removed.
        """
        if not self._main:
            return
        event = {"event": kind, "attempt": self.attempt, "time": time.time(), **fields}
        self._events.append(event)
        line = json.dumps(event) + "\n"
        try:
            with (self._run_dir / ATTEMPTS_NAME).open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            if not self._run_dir.exists():
                raise TrainingError(
                    f"the run directory {self._run_dir} was removed: nothing of this training can be kept"
                ) from None
            self.warn(f"{ATTEMPTS_NAME} could not be written ({error.strerror})")
        self._time_to_save.note(event)
        if kind == "saved" and self._time_to_save.seconds is not None:
            for warning in describe_short_notices(self._time_to_save, self._notices):
                self.warn(warning)
            # One warning an attempt is enough.
            self._notices = []

    def step(self, record: dict[str, Any]) -> None:
        """Append the record of a finished step to the journal; the first one ends the start-up."""
        if self._journal is None:
            return
        if self._starting and self._start_up is not None:
            self._starting = False
            self._start_up.lap("first step")
            parts = {name: round(seconds, 3) for name, seconds in self._start_up.parts.items()}
            self.event("first_step", seconds=round(self._start_up.seconds, 3), parts=parts)
            self.log(self._start_up.describe())
        self._step_s += record["step_s"]
        self._wait_s += record["step_s"] * record["data_wait"]
        self._time_to_save.steps.append(record["step_s"])
        error = self._journal.append({**record, "attempt": self.attempt})
        if error is not None and not self._warned:
            self.warn(
                f"metrics.jsonl could not be written ({error.strerror or error}); its records are kept in memory, and "
                "the next step tries again"
            )
        self._warned = error is not None

    def progress(self, record: dict[str, Any], total_steps: int, epoch: float) -> None:
        """Log one line on the training, with the remaining time at the rate since the last line.

        Args:
            record: record of the step.
            total_steps: steps of the whole training.
            epoch: passes over the training split that the step has reached.
        """
        if not self._main:
            return
        now, step = time.monotonic(), record["step"]
        before, self._last_line = self._last_line, (now, step)
        remaining = "" if before is None else format_remaining(total_steps - step, step - before[1], now - before[0])
        loss = math.nan if record["loss"] is None else record["loss"]
        log(
            f"step {step}/{total_steps}  epoch {epoch:.2f}  loss {loss:.4f}  lr {record['lr']:.2e}  "
            f"{record['images_per_s']:.0f} images/s  waiting for data {100 * record['data_wait']:.1f} %{remaining}"
        )

    def log(self, message: str) -> None:
        """Print one line in rank 0's log."""
        if self._main:
            log(message)

    def warn(self, message: str) -> None:
        """Print a warning as one line in rank 0's log."""
        self.log(f"warning: {message}")

    def time_spent(self) -> TimeSpent:
        """Return where the time of this attempt has gone so far."""
        wait = self._wait_s / self._step_s if self._step_s else 0.0
        steps = {"attempt": self.attempt, "time": time.time(), "step_s": self._step_s, "data_wait": wait}
        return attempts_spent(self._events, [steps])[self.attempt]

    def end(self, outcome: str) -> None:
        """Record and log the outcome of the attempt (the value of a `jobs.Outcome`), and where its time went."""
        if self._main:
            spent = self.time_spent()
            self.event("end", outcome=outcome, time_spent=spent.rounded())
            if self._opened:
                self.log(f"attempt {self.attempt}: {spent.describe()}")
        self.close()

    def sync(self) -> None:
        """Write all records of the journal to the disk.

        Raises:
            OSError: the disk is full.
        """
        if self._journal is not None:
            self._journal.sync()

    def close(self) -> None:
        """Fsync and close the journal."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
