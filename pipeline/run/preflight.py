"""What the preflight of an attempt has found of each rank: the judgement, and the table. No torch.

The ranks measure (`pipeline.train.measure`); everything here is a function of what they have measured.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.common.atomic import read_json
from pipeline.run.files import LOGS

CLOCK_S = 1.0
"""Seconds by which a node's clock may differ from that of most others."""
FSYNC_S = 1.0
"""Seconds that writing a small file to the run directory may take, however fast it is elsewhere."""
FREE_GB = 1.0
"""Room that a node's temporary folder should have, in 10^9 bytes."""
SHOWN = 16
"""Greatest number of ranks in the table: those that something was found of, and then the first."""
Kind = Literal["wrong", "failed", "slow", "note"]
"""`wrong`: the ranks would not compute one training. `failed`: the rank cannot compute. `slow`: slower than the others.
`note`: something to know."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one rank has measured; None is unknown or does not apply."""

    host: str
    problem: str = ""
    """Why it could not measure something; empty if it could."""
    versions: str = ""
    """Versions of Python, torch, CUDA and DeepSpeed."""
    code: str = ""
    """Digest of the project's files."""
    run: str = ""
    """Digest of the run's `config.json`, as this rank sees it."""
    shards: str = ""
    """Digest of the newest file of the training shards, as this rank sees it; empty for remote shards."""
    product_s: float | None = None
    """Seconds of a matrix product on the rank's device."""
    copy_s: float | None = None
    """Seconds of a copy in the device's memory."""
    pair_s: tuple[float | None, ...] = ()
    """Seconds of an exchange with each of two other ranks."""
    partners: tuple[int | None, ...] = ()
    """Those two ranks."""
    reduce_s: float | None = None
    """Seconds of a sum over all ranks."""
    sums_right: bool = True
    """Whether that sum, and the exchanges, gave the right numbers."""
    clock_s: float | None = None
    """Clock of the node minus that of rank 0, in seconds."""
    fsync_s: float | None = None
    """Seconds of writing a small file durably to the run directory."""
    free_gb: float | None = None
    """Room in the temporary folder, in 10^9 bytes."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that the preflight has found of a rank."""

    rank: int
    host: str
    kind: Kind
    what: str
    ratio: float = 1.0
    """Of a slow rank: its time over that of the others."""

    def describe(self) -> str:
        """Describe it: `rank 3 on n2: …`."""
        return f"rank {self.rank} on {self.host}: {self.what}"


def judge(ranks: Sequence[Measured], factor: float) -> list[Finding]:
    """Return what is wrong, failed, slow or noteworthy, in the order of ranks.

    Args:
        ranks: what each rank has measured.
        factor: a time greater than this many times the median of the other ranks is slow.
    """
    found: list[Finding] = []

    def find(rank: int, kind: Kind, what: str) -> None:
        found.append(Finding(rank=rank, host=ranks[rank].host, kind=kind, what=what))

    blind = _blind(ranks)
    for rank in blind:
        find(rank, "failed", "it does not see the training shards, which other ranks see")
    for name, what in _MUST_BE_EQUAL.items():
        values = [getattr(each, name) for each in ranks]
        for rank in _minority(values, () if name != "shards" else blind):
            find(rank, "wrong", f"{what} than most ranks ({_short(values[rank])}, most: {_short(_most(values))})")
    for rank, each in enumerate(ranks):
        if each.problem:
            find(rank, "failed", each.problem)
        if not each.sums_right:
            find(rank, "failed", "a sum over the ranks, or an exchange with another rank, gave wrong numbers")
    for what, seconds in _TIMES.items():
        times = [seconds(ranks, rank) for rank in range(len(ranks))]
        for rank, time in enumerate(times):
            others = [other for index, other in enumerate(times) if index != rank and other is not None]
            if time is None or not others:
                continue
            usual = statistics.median_low(others)
            if time > factor * usual:
                found.append(
                    Finding(
                        rank=rank,
                        host=ranks[rank].host,
                        kind="slow",
                        what=f"{what} takes {1000 * time:.3g} ms, {time / max(usual, 1e-9):.1f} times the others",
                        ratio=time / max(usual, 1e-9),
                    )
                )
    clocks = [each.clock_s for each in ranks if each.clock_s is not None]
    usual_clock = statistics.median_low(clocks) if clocks else 0.0
    for rank, each in enumerate(ranks):
        if each.clock_s is not None and abs(each.clock_s - usual_clock) > CLOCK_S:
            find(rank, "note", f"its clock differs by {each.clock_s - usual_clock:+.1f} s")
        if each.fsync_s is not None and each.fsync_s > FSYNC_S:
            find(rank, "note", f"writing a small file to the run directory takes {each.fsync_s:.1f} s")
        if each.free_gb is not None and each.free_gb < FREE_GB:
            find(rank, "note", f"only {each.free_gb:.2f} GB are free in its temporary folder")
    return sorted(found, key=lambda finding: finding.rank)


_MUST_BE_EQUAL = {
    "run": "it sees another config.json in the run directory",
    "code": "it has other code",
    "versions": "it has other versions",
    "shards": "it sees other training shards",
}


def _blind(ranks: Sequence[Measured]) -> list[int]:
    """Return the ranks that see no shards where others do: their node lacks a file system."""
    return [rank for rank, each in enumerate(ranks) if not each.shards] if any(each.shards for each in ranks) else []


def _exchange_s(ranks: Sequence[Measured], rank: int) -> float | None:
    """Return the time of the faster one of a rank's exchanges; None if it has not two of them.

    A slow link makes one exchange slow, of both ranks; a slow rank makes both of its exchanges slow. Of the two ranks
    of an exchange the time of the one that has waited for the other counts.
    """
    each = ranks[rank]
    times = []
    for number, partner in enumerate(each.partners):
        both = [each.pair_s[number], None if partner is None else ranks[partner].pair_s[number]]
        if partner is None or None in both:
            return None
        times.append(max(seconds for seconds in both if seconds is not None))
    return min(times, default=None)


_TIMES: dict[str, Callable[[Sequence[Measured], int], float | None]] = {
    "a matrix product": lambda ranks, rank: ranks[rank].product_s,
    "a copy in memory": lambda ranks, rank: ranks[rank].copy_s,
    "an exchange with each neighbour": _exchange_s,
}


def _most(values: Sequence[str]) -> str:
    """Return the most common value; of equally common ones the first, so that of rank 0."""
    return Counter(values).most_common(1)[0][0]


def _minority(values: Sequence[str], left_out: Sequence[int]) -> list[int]:
    most = _most([value for rank, value in enumerate(values) if rank not in left_out])
    return [rank for rank, value in enumerate(values) if value != most and rank not in left_out]


def _short(value: str) -> str:
    return value[:60] or "none"


def table(ranks: Sequence[Measured], findings: Sequence[Finding]) -> list[str]:
    """Return the lines of a table of the ranks, and of a list of what was found."""
    named = {finding.rank for finding in findings}
    shown = sorted(range(len(ranks)), key=lambda rank: (rank not in named, rank))[:SHOWN]
    rows: list[tuple[str, ...]] = [
        ("rank", "host", "product", "copy", "exchange", "sum", "fsync", "clock", "free", "found")
    ]
    for rank in sorted(shown):
        each = ranks[rank]
        kinds = ", ".join(sorted({finding.kind for finding in findings if finding.rank == rank}))
        pairs = "/".join(_ms(seconds) for seconds in each.pair_s) or "-"
        times = (_ms(each.product_s), _ms(each.copy_s), pairs, _ms(each.reduce_s), _ms(each.fsync_s))
        free = "-" if each.free_gb is None else f"{each.free_gb:.0f} GB"
        clock = "-" if each.clock_s is None else f"{1000 * each.clock_s:+.0f} ms"
        rows.append((str(rank), each.host, *times, clock, free, kinds))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    if len(ranks) > len(shown):
        lines.append(f"and {len(ranks) - len(shown)} more ranks, of which nothing was found")
    return lines + [f"{finding.kind}: {finding.describe()}" for finding in findings]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.3g} ms"


def report_path(run_dir: Path, attempt: int) -> Path:
    """Return the file of an attempt's preflight, which MLflow gets as it gets the jobs' reports."""
    return run_dir / LOGS / f"preflight_report_{attempt}.json"


def as_json(ranks: Sequence[Measured], findings: Sequence[Finding], seconds: float) -> dict[str, Any]:
    """Return what the file holds: each rank, the findings, and the table."""
    return {
        "seconds": round(seconds, 3),
        "ranks": [asdict(each) for each in ranks],
        "findings": [asdict(finding) for finding in findings],
        "table": table(ranks, findings),
    }


def read_table(run_dir: Path, attempt: int) -> list[str]:
    """Return the table of an attempt's preflight; empty if there was none."""
    content = read_json(report_path(run_dir, attempt)) or {}
    lines = content.get("table", [])
    return [str(line) for line in lines] if isinstance(lines, list) else []
