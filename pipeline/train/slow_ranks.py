"""Which ranks are slow: they keep the others waiting, for data or while they compute, in most of a hundred steps.

The ranks work in lock-step, so each step takes all of them equally long. The slow rank is the one that waits least for
the others: its own work, waiting for data and computing, takes longest. Every `WINDOW` steps the ranks exchange what
their work took, in the collective by which they agree on each step anyway.
"""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

WINDOW = 10
"""Steps whose times are exchanged together."""
WINDOW_S = 0.5
"""Seconds of work that a window has at least: steps of milliseconds are joined, since a moment disturbs ten of them."""
WINDOWS = 10
"""Windows over which a rank is judged."""
SLOW, WELL = 6, 2
"""A rank becomes slow when it is so in this many of the last windows, and well again when it is so in no more than
these. In between it stays what it was: a few windows that another program disturbed change nothing."""
Part = Literal["data", "computing"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a rank's own work took, in seconds a step."""

    data: float
    """Waiting for its samples."""
    computing: float
    """All that is neither waiting for samples nor for other ranks."""

    @property
    def seconds(self) -> float:
        """Both parts together."""
        return self.data + self.computing


@dataclass(frozen=True, kw_only=True)
class SlowRank:
    """A rank that has become slow, or well again."""

    rank: int
    is_slow: bool
    part: Part
    """Part of its work that takes the most longer than that of the others."""
    ratio: float
    """Its work over that of the others, the median of the last windows."""
    seconds: float
    """Its work in a step, the median of the last windows."""
    others: float
    """Work of the other ranks in a step, of which it is the median."""


class SlowRankDetector:
    """Judges the ranks by the times of their work; a pure function of what it was given."""

    def __init__(self, factor: float) -> None:
        """Begin without any times.

        Args:
            factor: work of a rank over the median of the others above which it is slow.
        """
        self._factor = factor
        self._windows: deque[list[Work]] = deque(maxlen=WINDOWS)
        self._slow: set[int] = set()
        self._joined: list[list[Work]] = []

    def add(self, window: list[Work]) -> list[SlowRank]:
        """Take what the work of each rank took in a window; return the ranks of which the judgement changes.

        Args:
            window: an entry for each rank, in their order; at least two.
        """
        self._joined.append(window)
        together = [
            Work(data=sum(work.data for work in works), computing=sum(work.computing for work in works))
            for works in zip(*self._joined, strict=True)
        ]
        if WINDOW * max(work.seconds for work in together) < WINDOW_S:
            return []
        count = len(self._joined)
        self._joined = []
        self._windows.append([Work(data=work.data / count, computing=work.computing / count) for work in together])
        if len(self._windows) < WINDOWS:
            return []
        changed = []
        for rank in range(len(window)):
            ratios = [slowness(each, rank) for each in self._windows]
            count = sum(ratio > self._factor for ratio in ratios)
            if count >= SLOW if rank not in self._slow else count <= WELL:
                changed.append(self._describe(rank, ratios))
                self._slow ^= {rank}
        return changed

    def _describe(self, rank: int, ratios: list[float]) -> SlowRank:
        usual = [
            Work(
                data=statistics.median(work.data for work in works),
                computing=statistics.median(work.computing for work in works),
            )
            for works in zip(*self._windows, strict=True)
        ]
        mine = usual.pop(rank)
        more_data = mine.data - statistics.median_low(work.data for work in usual)
        more_computing = mine.computing - statistics.median_low(work.computing for work in usual)
        return SlowRank(
            rank=rank,
            is_slow=rank not in self._slow,
            part="data" if more_data > more_computing else "computing",
            ratio=statistics.median(ratios),
            seconds=mine.seconds,
            others=statistics.median_low(work.seconds for work in usual),
        )


def slowness(window: Sequence[Work], rank: int) -> float:
    """Return the work of a rank over the median of the other ranks' work.

    The lower one of two middle values counts, so half of the ranks may be slow, as those of one node of two are.
    """
    others = statistics.median_low(work.seconds for other, work in enumerate(window) if other != rank)
    return window[rank].seconds / others if others > 0 else 1.0
