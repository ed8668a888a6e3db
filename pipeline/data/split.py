"""One split of a data set, opened: its manifest, its index, and where its shards are."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config.schema import DataConfig

if TYPE_CHECKING:
    from pipeline.data.cache import RemoteShards
    from pipeline.data.index import SampleIndex
    from pipeline.data.prefetch import Prefetcher
    from sharding import Manifest


@dataclass(frozen=True)
class Split:
    """A split of a data set."""

    manifest: "Manifest"
    index: "SampleIndex"
    shards: "str | RemoteShards"
    """Local folder with the shards, or what fetches them into the node's cache."""


def open_split(location: str, name: str, data: DataConfig) -> Split:
    """Read a split's manifest and map its index on this node. No sample is read, and no process started.

    Args:
        location: folder or URI of the shards.
        name: name of the split.
        data: `cache_dir` and `cache_gb` say where, and up to which size, the node keeps indices and remote shards.

    Raises:
        ManifestError: there is no such split, or its index does not fit.
        CacheFolderError: the node's folder for indices and shards cannot be used.
    """
    from pyarrow.fs import LocalFileSystem

    from pipeline.data.cache import RemoteShards
    from pipeline.data.index import cache_folder, open_index
    from sharding import load_manifest, open_filesystem

    manifest = load_manifest(location, name)
    folder = cache_folder(data.cache_dir)
    index = open_index(location, manifest, folder)
    filesystem, shards = open_filesystem(location)
    if not isinstance(filesystem, LocalFileSystem):
        sizes = {shard.name: shard.bytes for shard in manifest.shards}
        shards = RemoteShards(location, manifest.digest, sizes, str(folder), int(data.cache_gb * 1e9))
    return Split(manifest, index, shards)


def build_prefetcher(data: DataConfig, split: Split, needs: Iterator[tuple[int, int]]) -> "Prefetcher | None":
    """Start the process that fetches remote shards ahead of their need; None where the shards are local.

    Half of the cache is for shards that are not needed yet. The ranks of the node share it evenly; `LOCAL_WORLD_SIZE`,
    which torchrun and every other launcher sets, is their number.

    Args:
        data: `cache_gb` is the size of the cache.
        split: the split that is read.
        needs: (position at which it is first needed, number of the shard), in the order of the positions.
    """
    if isinstance(split.shards, str):
        return None
    from pipeline.data.prefetch import Prefetcher

    budget = int(data.cache_gb * 1e9) // (2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    names = split.index.shard_names
    return Prefetcher(split.shards, ((position, names[shard]) for position, shard in needs), budget)
