"""The order in which a training reads its samples: which rank reads which sample in which step, as pure functions.

An epoch is one permutation of all samples. The shards are permuted, and their concatenation is cut into `lanes` lanes
of equal size. Each lane is shuffled within blocks of `block_shards` shards. Position p of the epoch belongs to lane p
mod lanes.

With a global batch of G samples, step s reads positions [s G, (s + 1) G) of the endless concatenation of epochs, and
rank r of W reads those with p mod W = r. So a batch is the same set of samples for every number of ranks. While W
divides the lanes, one rank reads a shard (two at the edge of a lane), so a small cache of remote shards is enough.

Each position is computed by itself: resuming at a step costs as much as one batch, whatever the step.
"""

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import count

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import InputError
from pipeline.order import draws

_SAMPLES_AT_ONCE = 2048
"""Samples of a rank whose rows `batches` computes at once."""


class SampleOrder:
    """The order of all epochs over shards of given sizes.

    A row is the number of a sample in the order of the shards, as in the index.
    """

    def __init__(self, shard_samples: tuple[int, ...], *, seed: int, lanes: int = 64, block_shards: int = 4) -> None:
        """Fix the order.

        Args:
            shard_samples: samples of each shard, in the manifest's order.
            seed: seed of the training.
            lanes: number of lanes of an epoch; a batch takes samples from all of them in turn.
            block_shards: shards whose samples are shuffled together within a lane.

        Raises:
            InputError: there are no samples.
            ValueError: `lanes` or `block_shards` is not positive.
        """
        if min(shard_samples, default=0) < 0 or sum(shard_samples) < 1:
            raise InputError(f"shards with {list(shard_samples)[:8]} samples cannot be trained on: there must be one")
        if lanes < 1 or block_shards < 1:
            raise ValueError(f"lanes {lanes} and block_shards {block_shards} must be greater than 0")
        self.seed, self.lanes, self.block_shards = seed, lanes, block_shards
        self.shard_samples = np.asarray(shard_samples, np.int64)
        self.first_rows = np.concatenate([[0], np.cumsum(self.shard_samples)])
        self.num_samples = int(self.first_rows[-1])
        self._shuffled_shards = lru_cache(maxsize=2)(self._shuffle_shards)
        self._cached_edges = lru_cache(maxsize=2 * lanes)(lambda epoch, lane: self.lane_edges(epoch, lane).tolist())
        self._shuffled_block = lru_cache(maxsize=2 * lanes)(self._shuffle_block)

    def at(self, epoch: int, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows at positions of an epoch, each in [0, num_samples): int64, as many as positions."""
        rows = np.empty(len(positions), np.int64)
        within, lane_of = np.divmod(positions, self.lanes)
        by_lane = np.argsort(lane_of, kind="stable")
        lanes, firsts = np.unique(lane_of[by_lane], return_index=True)
        for lane, begin, end in zip(lanes.tolist(), firsts.tolist(), [*firsts[1:].tolist(), len(rows)], strict=True):
            here = by_lane[begin:end]
            edges = self._cached_edges(epoch, lane)
            places = edges[0] + within[here]
            # Positions of a batch lie close together in a lane: mostly within one block.
            blocks = range(bisect_right(edges, places.min()) - 1, bisect_right(edges, places.max()))
            for low, high in ((edges[block], edges[block + 1]) for block in blocks):
                inside = slice(None) if len(blocks) == 1 else (low <= places) & (places < high)
                rows[here[inside]] = self._shuffled_block(epoch, low, high)[places[inside] - low]
        return rows

    def batch(
        self, step: int, global_batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows that a rank reads in a step, and the epoch of each: int64 [share] each.

        Args:
            step: optimizer step, from 0.
            global_batch_size: samples of a step over all ranks.
            rank: the rank.
            world_size: number of ranks.
        """
        return self._read(rank_positions(step, global_batch_size, rank, world_size))

    def batches(
        self, steps: range, global_batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield (step, rows, epochs) of consecutive steps, with rows and epochs as from `batch`.

        Several steps are computed at once: a small batch has one sample of each lane and costs as much as many of them.

        Args:
            steps: consecutive optimizer steps.
            global_batch_size: samples of a step over all ranks.
            rank: the rank.
            world_size: number of ranks.
        """
        together = max(1, _SAMPLES_AT_ONCE * world_size // global_batch_size)
        for first in range(steps.start, steps.stop, together):
            some = range(first, min(first + together, steps.stop))
            positions = [rank_positions(step, global_batch_size, rank, world_size) for step in some]
            rows, epochs = self._read(np.concatenate(positions))
            ends = np.cumsum([len(part) for part in positions])[:-1]
            yield from zip(some, np.split(rows, ends), np.split(epochs, ends), strict=True)

    def _read(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows and the epochs at positions of the endless concatenation of epochs."""
        epochs, within = np.divmod(positions, self.num_samples)
        rows = np.empty(len(positions), np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            rows[chosen] = self.at(int(epoch), within[chosen])
        return rows, epochs

    def lane_edges(self, epoch: int, lane: int) -> NDArray[np.int64]:
        """Return the first places of a lane's blocks in the epoch's concatenation, and its end: int64 [blocks + 1]."""
        begin, end = self._lane_range(lane)
        _, starts = self._shuffled_shards(epoch)
        inner = np.unique(starts[(starts > begin) & (starts < end)])
        return np.concatenate([np.concatenate([[begin], inner])[:: self.block_shards], [end]])

    def shards_by_need(self, position: int, rank: int = 0, world_size: int = 1) -> Iterator[tuple[int, int]]:
        """Yield (position, shard) in the order in which a rank will need the shards, without end.

        Positions are those of the endless concatenation of epochs: before the yielded one, the rank reads nothing of
        the shard in that epoch. A shard that is needed already is yielded with a position before `position`.

        Args:
            position: position from which the rank reads.
            rank: the rank.
            world_size: number of ranks.
        """
        for epoch in count(position // self.num_samples):
            first = epoch * self.num_samples
            needs: dict[int, int] = {}
            for lane in range(self.lanes):
                if self.lanes % world_size == 0 and (first + lane) % world_size != rank:
                    continue
                edges = self.lane_edges(epoch, lane)
                shuffled, starts = self._shuffled_shards(epoch)
                for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
                    begin, end = (first + lane + self.lanes * (edge - int(edges[0])) for edge in (low, high))
                    if end <= position or low == high:
                        continue
                    slots = range(np.searchsorted(starts, low, side="right") - 1, np.searchsorted(starts, high))
                    for shard in shuffled[slots].tolist():
                        needs[shard] = min(begin, needs.get(shard, begin))
            yield from sorted((begin, shard) for shard, begin in needs.items())

    def _lane_range(self, lane: int) -> tuple[int, int]:
        """Return begin and end of a lane, which is as long as an epoch has positions p with p mod lanes = lane."""
        size, longer = divmod(self.num_samples, self.lanes)
        begin = lane * size + min(lane, longer)
        return begin, begin + size + (lane < longer)

    def _shuffle_shards(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the shards in the epoch's order, and the first place of each in their concatenation."""
        shuffled = draws.permutation(draws.key(self.seed, draws.Purpose.SHARDS, epoch), len(self.shard_samples))
        sizes = self.shard_samples[shuffled]
        return shuffled, np.cumsum(sizes) - sizes

    def _shuffle_block(self, epoch: int, low: int, high: int) -> NDArray[np.int64]:
        """Return the shuffled rows of the places [low, high) of the epoch's concatenation."""
        shuffled, starts = self._shuffled_shards(epoch)
        places = low + draws.permutation(draws.key(self.seed, draws.Purpose.BLOCK, epoch, low), high - low)
        # Of several shards that begin at one place, all but the last are empty.
        slot = np.searchsorted(starts, places, side="right") - 1
        return self.first_rows[shuffled[slot]] + places - starts[slot]


def rank_positions(step: int, global_batch_size: int, rank: int = 0, world_size: int = 1) -> NDArray[np.int64]:
    """Return the positions in the endless concatenation of epochs that a rank reads in a step: int64 [share]."""
    first = step * global_batch_size
    return np.arange(first + (rank - first) % world_size, first + global_batch_size, world_size, dtype=np.int64)


def mixing_groups(global_batch_size: int, group_size: int, rank: int = 0, world_size: int = 1) -> NDArray[np.int64]:
    """Return the mixing group of each sample that a rank reads in a step: int64 [share].

    The samples of a step are divided into groups as upstream divides them among GPUs, each of which mixes its batch by
    a draw of its own. The group of a sample is its position in the step modulo the number of groups, so it does not
    depend on the number of ranks. A micro-batch whose size divides `group_size` lies within one group.

    Args:
        global_batch_size: samples of a step over all ranks.
        group_size: samples of a group; a smaller global batch is one group.
        rank: the rank.
        world_size: number of ranks.
    """
    return np.arange(rank, global_batch_size, world_size) % max(1, global_batch_size // group_size)


def global_order(
    shard_samples: tuple[int, ...],
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    stop: int | None = None,
    lanes: int = 64,
    block_shards: int = 4,
) -> NDArray[np.int64]:
    """Return the rows at positions [start, stop) of an epoch: int64 [stop - start].

    Args:
        shard_samples: samples of each shard, in the manifest's order.
        seed: seed of the training.
        epoch: number of the epoch, from 0.
        start: first position.
        stop: position after the last; None: the end of the epoch.
        lanes: as for `SampleOrder`.
        block_shards: as for `SampleOrder`.

    Raises:
        ValueError: as for `SampleOrder`, or the range does not lie in the epoch.
    """
    order = SampleOrder(shard_samples, seed=seed, lanes=lanes, block_shards=block_shards)
    stop = order.num_samples if stop is None else stop
    if not 0 <= start <= stop <= order.num_samples:
        raise ValueError(f"positions [{start}, {stop}) do not lie in an epoch of {order.num_samples} samples")
    return order.at(epoch, np.arange(start, stop, dtype=np.int64))
