"""A small training whose ranks exchange gradients by gloo, over the network of their nodes."""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from jobs import Outcome, StopRequested

STEPS, SAVE_EVERY = 60, 10


def gradient(weight: float, rank: int, step: int) -> float:
    """The gradient that a rank computes."""
    return (weight - rank) / (step + 3)


def trained_alone(world_size: int) -> float:
    """The weight after an uninterrupted training, computed in this process; exact for two ranks."""
    weight = 0.0
    for step in range(STEPS):
        weight -= sum(gradient(weight, rank, step) for rank in range(world_size))
    return weight


@dataclass(frozen=True, kw_only=True)
class GlooTraining:
    """Trains one weight in double precision for `STEPS` steps; rank 0 saves it every `SAVE_EVERY` steps.

    Each rank appends a line for each start: first step, host name, interface of gloo, address of rank 0.
    """

    folder: Path
    pause_s: float = 0.1

    def progress(self) -> str:
        """The saved step."""
        return f"step {self.saved()[0]}"

    def saved(self) -> tuple[int, float]:
        """The step from which to resume, and the weight there."""
        path = self.folder / "saved"
        step, weight = path.read_text().split() if path.exists() else ("0", "0x0p+0")
        return int(step), float.fromhex(weight)

    def __call__(self, stop_requested: StopRequested) -> Outcome:
        """Train to the end, or until asked to stop."""
        import torch
        from torch import distributed

        distributed.init_process_group("gloo")
        rank = distributed.get_rank()
        first, weight = self.saved()
        with (self.folder / f"starts{rank}").open("a") as file:
            place = (socket.gethostname(), os.environ.get("GLOO_SOCKET_IFNAME", "-"), os.environ["MASTER_ADDR"])
            print(first, *place, file=file)
        for step in range(first, STEPS):
            total = torch.tensor([gradient(weight, rank, step), stop_requested()], dtype=torch.float64)
            distributed.all_reduce(total)
            if total[1]:
                return self._save(step, weight, rank, Outcome.INTERRUPTED)
            weight -= float(total[0])
            if (step + 1) % SAVE_EVERY == 0:
                self._save(step + 1, weight, rank, Outcome.FINISHED)
            time.sleep(self.pause_s)
        return Outcome.FINISHED

    def _save(self, step: int, weight: float, rank: int, outcome: Outcome) -> Outcome:
        from torch import distributed

        if rank == 0:
            (self.folder / "saved.tmp").write_text(f"{step} {weight.hex()}")
            (self.folder / "saved.tmp").replace(self.folder / "saved")
        distributed.barrier()
        return outcome
