"""Which sample goes into which shard, and in what order: a pure function of the listing, the seed and the shard size.

The order is a sort by a seeded hash of each sample's key. It depends neither on the order in which a source lists its
files nor on the version of a random generator: the same images stored as archives or as class folders give the same
shards.
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

# Bytes of a sample in addition to the image: three headers, a block of label, a block of JSON, half a block of padding.
SAMPLE_OVERHEAD = 5 * BLOCK + BLOCK // 2


@dataclass(frozen=True)
class Plan:
    """The content of every shard.

    Attributes:
        order: int64 `[samples]`; positions in the listing, in the order in which the samples are written.
        bounds: int64 `[shards + 1]`; shard `i` holds `order[bounds[i]:bounds[i + 1]]`.
    """

    order: NDArray[np.int64]
    bounds: NDArray[np.int64]

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self.bounds) - 1

    def samples(self, shard: int) -> NDArray[np.int64]:
        """Positions in the listing of the samples of one shard, int64, in the order of the tar."""
        return self.order[self.bounds[shard] : self.bounds[shard + 1]]

    def digest(self, keys: Sequence[str]) -> str:
        """SHA-256 in hex over the keys in the order of the plan and the bounds of the shards.

        Args:
            keys: keys of the listing that the plan was made for.
        """
        order: list[int] = self.order.tolist()
        digest = hashlib.sha256("\n".join([keys[sample] for sample in order]).encode())
        digest.update(self.bounds.astype("<i8").tobytes())
        return digest.hexdigest()


def sample_hashes(keys: Sequence[str], seed: int) -> NDArray[np.uint64]:
    """Hash the key of each sample, uint64 `[samples]`: what samples are shuffled and divided by."""
    return np.fromiter((xxhash.xxh64_intdigest(key.encode(), seed) for key in keys), np.uint64, len(keys))


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
        keys: key of each sample, all different.
        sizes: int64 `[samples]`; bytes of each image in the source.
        seed: seed of the shuffle.
        shard_bytes: planned size of a shard; a shard exceeds it by at most one sample (if every sample is smaller).
        blocks: int32 `[samples]`; the block of each sample, where samples can only be read in whole blocks (row
            groups of parquet). Blocks are then shuffled as a whole, and samples within a shard.

    Returns:
        The plan; a plan without shards if there are no samples.
    """
    count = len(sizes)
    hashes = sample_hashes(keys, seed)
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
