"""Splits the time of each step on each rank, and names the ranks that are slow."""

import time
from collections import defaultdict
from typing import Any

from jobs import node_name
from pipeline.engine.collectives import CollectiveTimer
from pipeline.engine.distributed import World, gather_objects
from pipeline.run.recorder import Recorder
from pipeline.train.slow_ranks import WINDOW, WINDOWS, SlowRank, SlowRankDetector, Work, slowness


class RankTimes:
    """The times of this rank's steps, and what the ranks tell each other of them.

    Each rank writes its times into a place of its own of the vector that all ranks add up in each step, so every rank
    learns the times of all ranks without a collective of its own.
    """

    def __init__(self, world: World, timer: CollectiveTimer, recorder: Recorder, factor: float) -> None:
        """Tell the other ranks the host of this one. Collective.

        Args:
            world: this process among the ranks.
            timer: measures how long this rank waits for the others.
            recorder: writes, on rank 0, which ranks are slow.
            factor: work of a rank over that of the others above which it is slow.
        """
        self._world, self._timer, self._recorder = world, timer, recorder
        self.hosts = [str(host) for host in gather_objects(node_name())]
        """Host of each rank."""
        self._detector = SlowRankDetector(factor)
        self._data = self._computing = 0.0

    def begin(self) -> float:
        """Begin a step; what this rank has waited since the last one is not counted.

        Returns:
            The time of the monotonic clock, in seconds.
        """
        self._timer.take()
        return time.monotonic()

    def to_send(self, step: int) -> list[float]:
        """Return what this rank adds to the vector of a step: its times at the end of a window, and nothing else.

        Args:
            step: number of the step, counted from 1.
        """
        if self._world.size == 1 or step % WINDOW:
            return []
        places = [0.0] * (2 * self._world.size)
        first = 2 * self._world.rank
        places[first : first + 2] = [self._data, self._computing]
        self._data = self._computing = 0.0
        return places

    def end(self, seconds: float, data_wait_s: float) -> float:
        """Count a finished step; return how long this rank has waited for the others in it.

        Args:
            seconds: duration of the step.
            data_wait_s: seconds of it that this rank waited for its batches.
        """
        waited = min(self._timer.take(), max(0.0, seconds - data_wait_s))
        self._data += data_wait_s
        self._computing += max(0.0, seconds - data_wait_s - waited)
        return waited

    def received(self, step: int, places: list[float]) -> dict[str, Any]:
        """Judge the ranks by the times that all have sent; rank 0 logs and records a change.

        Args:
            step: number of the step.
            places: sum of what the ranks have sent; empty if nothing was due.

        Returns:
            What the record of the step gets: the slowest rank, and its work over that of the others.
        """
        if not places:
            return {}
        pairs = zip(places[::2], places[1::2], strict=True)
        window = [Work(data=data / WINDOW, computing=computing / WINDOW) for data, computing in pairs]
        self._tell(step, self._detector.add(window))
        ratio, rank = max((slowness(window, rank), rank) for rank in range(len(window)))
        return {"slowest_rank": rank, "slowest_ratio": round(ratio, 4)}

    def _tell(self, step: int, changes: list[SlowRank]) -> None:
        by_host: dict[tuple[str, bool, str], list[SlowRank]] = defaultdict(list)
        for change in changes:
            host = self.hosts[change.rank]
            by_host[host, change.is_slow, change.part].append(change)
            self._recorder.event(
                "slow_rank" if change.is_slow else "well_rank",
                step=step,
                rank=change.rank,
                host=host,
                part=change.part,
                ratio=round(change.ratio, 3),
                work_s=round(change.seconds, 6),
                others_s=round(change.others, 6),
            )
        for (host, is_slow, part), ranks in by_host.items():
            numbers = ", ".join(str(each.rank) for each in ranks)
            who = f"rank{'s' if len(ranks) > 1 else ''} {numbers} on {host}"
            first = ranks[0]
            work = f"{first.seconds:.3g} s a step, {first.ratio:.2f} times the {first.others:.3g} s of the other ranks"
            if is_slow:
                self._recorder.warn(
                    f"step {step}: {who} slow, as in most of the last {WINDOWS} comparisons: the work takes {work}, "
                    "and all ranks wait; "
                    f"the slow part is {'waiting for data' if part == 'data' else 'computing'}"
                )
            else:
                self._recorder.log(f"step {step}: {who} no longer slow: the work takes {work}")
