"""One split of a data set, opened: its manifest, its index, and what its readers need."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.config.schema import TrainConfig

if TYPE_CHECKING:
    from pipeline.data.index import SampleIndex
    from pipeline.data.prefetch import Prefetcher
    from pipeline.data.reader import ReaderSpec
    from sharding import Manifest


@dataclass(frozen=True)
class Split:
    """A split that was found: what it is, where its samples lie, and how they are read."""

    manifest: "Manifest"
    index: "SampleIndex"
    spec: "ReaderSpec"


def open_split(config: TrainConfig, location: str, split: str, *, training: bool) -> Split:
    """Find a split and map its index on this node.

    Args:
        config: of the training; it says how samples are read and where remote shards are kept.
        location: folder or URI of the shards.
        split: name of the split.
        training: whether samples are augmented for training, or prepared for evaluation.

    Raises:
        ManifestError: there is no such split, or its index does not fit.
        CacheFolderError: the node's folder for indices and shards cannot be used.
    """
    from pyarrow.fs import LocalFileSystem

    from pipeline.data.cache import RemoteShards
    from pipeline.data.index import cache_folder, open_index
    from pipeline.data.reader import ReaderSpec
    from sharding import load_manifest, open_filesystem

    manifest = load_manifest(location, split)
    folder = cache_folder(config.data.cache_dir)
    index = open_index(location, manifest, folder)
    filesystem, shards = open_filesystem(location)
    if not isinstance(filesystem, LocalFileSystem):
        sizes = {shard.name: shard.bytes for shard in manifest.shards}
        shards = RemoteShards(location, manifest.digest, sizes, str(folder), int(config.data.cache_gb * 1e9))
    spec = ReaderSpec(
        index_folder=index.folder,
        shards=shards,
        augment=config.augment,
        image_size=config.model.image_size,
        seed=config.seed,
        training=training,
        on_damage=config.data.on_damage,
    )
    return Split(manifest, index, spec)


def build_prefetcher(config: TrainConfig, split: Split, needs: Iterator[tuple[int, int]]) -> "Prefetcher | None":
    """What fetches remote shards ahead of their need; None where they are local.

    Half of the cache is for what is not needed yet, shared by the ranks of the node (`LOCAL_WORLD_SIZE`, as torchrun
    and every other launcher sets it).
    """
    if isinstance(split.spec.shards, str):
        return None
    from pipeline.data.prefetch import Prefetcher

    budget = int(config.data.cache_gb * 1e9) // (2 * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    names = split.index.shard_names
    return Prefetcher(split.spec.shards, ((position, names[shard]) for position, shard in needs), budget)
