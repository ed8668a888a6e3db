"""Tiny tasks that run in real processes: no torch, one file of state."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from jobs import Outcome, StopRequested


@dataclass(frozen=True)
class Count:
    """Counts to `end`, a step a `pause_s`; every rank writes what it saw, rank 0 saves the step when it stops."""

    folder: Path
    end: int = 5
    pause_s: float = 0.05
    save_every: int = 0
    raise_at: int | None = None
    kill_rank_at: tuple[int, int] | None = None
    end_together: bool = True

    def progress(self) -> str:
        """The saved step."""
        return str(self.saved())

    def ended(self, outcome: Outcome) -> None:
        """Note the word."""
        with (self.folder / "ended").open("a") as file:
            file.write(outcome.name + "\n")

    def saved(self) -> int:
        """The step to go on from."""
        path = self.folder / "step"
        return int(path.read_text()) if path.exists() else 0

    def save(self, step: int) -> None:
        """Publish a step."""
        (self.folder / "step.tmp").write_text(str(step))
        (self.folder / "step.tmp").replace(self.folder / "step")

    def __call__(self, stop_requested: StopRequested) -> Outcome:
        """Count."""
        rank = int(os.environ["RANK"])
        first = self.saved()
        names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "JOB_RESTARTS"]
        with (self.folder / f"rank{rank}").open("a") as file:
            file.write(f"{first} {os.getpid()} " + " ".join(os.environ[name] for name in names) + "\n")
        print(f"rank {rank} starts at {first}", flush=True)
        for step in range(first, self.end):
            if step == self.raise_at and rank == 0:
                raise ValueError(f"step {step} cannot be done")
            if self.kill_rank_at == (rank, step):
                os.kill(os.getpid(), signal.SIGKILL)
            if stop_requested():
                if rank == 0:
                    self.save(step)
                return Outcome.INTERRUPTED
            if rank == 0 and self.save_every and step % self.save_every == 0:
                self.save(step)
            time.sleep(self.pause_s)
        if rank == 0:
            self.save(self.end)
        return Outcome.FINISHED
