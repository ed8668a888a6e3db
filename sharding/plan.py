"""Which sample goes into which shard, and in what order: a pure function of the listing, the seed and the size.

The order is a sort by a seeded hash of each sample's key, so that it depends neither on the order in which a
source lists its files nor on the version of a random generator: the same images held as archives or as
class folders give the same shards.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from sharding.tarfiles import BLOCK

# Beside the image's bytes a sample takes three headers, a block of label, a block of JSON and half a block of padding.
SAMPLE_OVERHEAD = 5 * BLOCK + BLOCK // 2


@dataclass(frozen=True)
class Plan:
    """The content of every shard.

    Attributes:
        order: sample numbers of the listing, int64 `[samples]`, in the order in which they are written.
        bounds: int64 `[shards + 1]`; shard `i` holds `order[bounds[i]:bounds[i + 1]]`.
    """

    order: NDArray[np.int64]
    bounds: NDArray[np.int64]

    @property
    def num_shards(self) -> int:
        """How many shards there are."""
        return len(self.bounds) - 1

    def samples(self, shard: int) -> NDArray[np.int64]:
        """The sample numbers of one shard, in order."""
        return self.order[self.bounds[shard] : self.bounds[shard + 1]]

    def digest(self, keys: Sequence[str]) -> str:
        """SHA-256 in hex over the keys in the order of the plan, and the bounds of its shards.

        Args:
            keys: of the listing it was made for.
        """
        order: list[int] = self.order.tolist()
        digest = hashlib.sha256("\n".join([keys[sample] for sample in order]).encode())
        digest.update(self.bounds.astype("<i8").tobytes())
        return digest.hexdigest()


def make_plan(
    keys: Sequence[str],
    sizes: NDArray[np.int64],
    *,
    seed: int,
    shard_bytes: int,
    blocks: NDArray[np.int32] | None = None,
) -> Plan:
    """Shuffle the samples and cut them into shards of nearly equal size.

    Args:
        keys: one a sample, all different.
        sizes: bytes of each image as it lies in the source.
        seed: of the shuffle.
        shard_bytes: no shard is planned larger than this by more than one sample (if every sample is smaller).
        blocks: where samples can only be read in blocks (row groups of parquet), the block of each. Blocks are then
            shuffled, and samples within a shard.

    Returns:
        The plan; with no samples, one without shards.
    """
    count = len(sizes)
    hashes = np.fromiter((xxhash.xxh64_intdigest(key.encode(), seed) for key in keys), np.uint64, count)
    order = np.argsort(hashes, kind="stable").astype(np.int64)
    if blocks is not None and count:
        first_hash = np.full(int(blocks.max()) + 1, np.iinfo(np.uint64).max, np.uint64)
        np.minimum.at(first_hash, blocks, hashes)
        order = order[np.lexsort((blocks[order], first_hash[blocks[order]]))]
    filled = np.cumsum(sizes[order] + SAMPLE_OVERHEAD)
    num_shards = -(-int(filled[-1]) // shard_bytes) if count else 0
    num_shards = min(num_shards, count)
    if num_shards:
        cuts = np.searchsorted(filled, np.arange(1, num_shards) * (filled[-1] / num_shards), side="left") + 1
        bounds = np.unique(np.concatenate(([0], cuts, [count])).astype(np.int64))
    else:
        bounds = np.zeros(1, np.int64)
    if blocks is not None:
        for start, stop in itertools.pairwise(bounds):
            part = order[start:stop]
            order[start:stop] = part[np.argsort(hashes[part], kind="stable")]
    return Plan(order, bounds)
