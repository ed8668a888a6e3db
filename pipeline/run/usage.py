"""What a run has used of a cluster: the hours of its ranks, and the energy of the GPUs of its nodes."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.run.files import read_records
from pipeline.run.status import AttemptSpan
from pipeline.run.system import EVERY_S, FOLDER

_GAP_S = 3 * EVERY_S
"""Seconds between two samples of a node from which on its power between them counts as unknown."""
_POWER = re.compile(r"gpu_\d+_power_w")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What all attempts of a run have used."""

    rank_hours: float
    """Ranks times hours, from the start of each attempt to its end; a rank on a GPU has one GPU."""
    on_gpus: bool
    """Whether the ranks ran on GPUs."""
    energy_kwh: float | None
    """What all GPUs of the nodes have drawn during the attempts, in kWh; None: unknown."""

    def describe(self) -> str:
        """Describe it in a few words: `12.4 GPU-hours, 5.3 kWh of its nodes' GPUs`."""
        number, unit = (self.rank_hours, "hours") if self.rank_hours >= 1 else (60 * self.rank_hours, "minutes")
        time = f"{number:,.1f} {'GPU' if self.on_gpus else 'process'}-{unit}"
        return time if self.energy_kwh is None else f"{time}, {self.energy_kwh:,.1f} kWh of its nodes' GPUs"


def read_usage(run_dir: Path, attempts: Sequence[AttemptSpan]) -> Usage:
    """Add up the attempts of a run, and the samples of its nodes (`pipeline.run.system`) during them.

    Power is interpolated between two samples; nothing is assumed before the first sample of an attempt, after its last
    one, or over a gap of minutes.
    """
    nodes = sorted((run_dir / FOLDER).glob("node_*.jsonl"))
    watt_s = [energy for path in nodes for energy in _watt_s(path, attempts)]
    return Usage(
        rank_hours=sum(span.world_size * (span.ended - span.started) for span in attempts) / 3600,
        on_gpus=any(span.on_gpus for span in attempts),
        energy_kwh=sum(watt_s) / 3.6e6 if watt_s else None,
    )


def _watt_s(path: Path, attempts: Sequence[AttemptSpan]) -> list[float]:
    """Return the energy between each two samples of a node in the same attempt, in watt-seconds."""
    samples = [
        (float(record["time"]), power) for record, _ in read_records(path) if (power := _power(record)) is not None
    ]
    return [
        (end - begin) * (before + after) / 2
        for (begin, before), (end, after) in itertools.pairwise(samples)
        if end - begin <= _GAP_S and any(span.started <= begin <= end <= span.ended for span in attempts)
    ]


def _power(sample: dict[str, Any]) -> float | None:
    """Return the power of all GPUs of a node in W; None if a sample has none."""
    values = [value for name, value in sample.items() if _POWER.fullmatch(name) and isinstance(value, int | float)]
    return sum(values) if values and isinstance(sample.get("time"), int | float) else None
