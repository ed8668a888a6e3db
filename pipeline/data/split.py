"""One split of a data set, opened: its manifest, its index, and where its shards are."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from pyarrow.fs import LocalFileSystem

from pipeline.config.schema import DataConfig
from pipeline.data.cache import STAGE, RemoteShards
from pipeline.data.index import SampleIndex, cache_folder, open_index
from pipeline.data.prefetch import Prefetcher
from sharding import Manifest, load_manifest, open_filesystem


@dataclass(frozen=True)
class Split:
    """An open split of a data set.

    Attributes:
        manifest: classes, shards and digest of the split.
        index: the samples, mapped on this node.
        shards: local folder with the shards, or the description of remote or staged ones and their cache.
    """

    manifest: Manifest
    index: SampleIndex
    shards: str | RemoteShards


def open_split(location: str, name: str, data: DataConfig) -> Split:
    """Read the manifest of a split and map its index on this node; no sample is read and no loader worker started.

    Args:
        location: folder or URI of the shards.
        name: name of the split.
        data: `name` is the data set, where the folder holds several; `cache_dir` and `cache_gb` are the node's folder
            for indices and remote shards, and its limit; `stage` is the folder for all shards, if it is given.

    Raises:
        ManifestError: the split does not exist, or its index does not match its manifest.
        CacheFolderError: the node's folder for indices and shards cannot be used.
    """
    manifest = load_manifest(location, name, data.name)
    folder = cache_folder(data.cache_dir)
    index = open_index(location, manifest, folder)
    filesystem, shards = open_filesystem(location)
    if data.stage is not None or not isinstance(filesystem, LocalFileSystem):
        sizes = {shard.name: shard.bytes for shard in manifest.shards}
        limit, options = int(data.cache_gb * 1e9), {}
        if data.stage is not None:
            folder, options = cache_folder(data.stage, STAGE), {"flag": STAGE}
        shards = RemoteShards(location, manifest.digest, sizes, str(folder), limit, **options)
    return Split(manifest, index, shards)


def build_prefetcher(data: DataConfig, split: Split, needs: Iterator[tuple[int, int]]) -> Prefetcher | None:
    """Start the process that copies remote or staged shards before they are needed; None if they are read in place.

    Half of the cache is for shards that are not needed yet. The ranks of a node share it evenly; `LOCAL_WORLD_SIZE`,
    which torchrun and every other launcher sets, is their number.

    Args:
        data: `cache_gb` is the size of the cache.
        split: split that is read.
        needs: (position in the sample order at which it is first needed, number of the shard) of each shard, in order
            of the positions.
    """
    if isinstance(split.shards, str):
        return None
    budget = int(data.cache_gb * 1e9) // (2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    names = split.index.shard_names
    return Prefetcher(split.shards, ((position, names[shard]) for position, shard in needs), budget)
