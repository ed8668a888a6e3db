"""`sharding.build --dry-run`: what a build would write and how long it would take, without writing anything."""

from __future__ import annotations

import time
from collections.abc import Iterator

from sharding.errors import ImageError
from sharding.images import ImagePolicy, pack_image
from sharding.manifest import find_manifests, shards_of
from sharding.plan import SAMPLE_OVERHEAD, Plan
from sharding.sources.images import iter_images
from sharding.sources.listing import Listing, select_samples
from sharding.storage import Folder
from sharding.work_folder import is_unfinished

_TRIED_IMAGES = 64
_TRIED_SECONDS = 5.0


def estimate(source: Folder, listing: Listing, plan: Plan, policy: ImagePolicy, workers: int) -> Iterator[str]:
    """Estimate shards, bytes and time of a split from its sizes and from its first images.

    Args:
        source: folder of the images.
        listing: the split.
        plan: the content of each shard.
        policy: how each image is checked and converted.
        workers: number of worker processes.

    Yields:
        Lines for the user; one for each image tried that cannot be read.

    Raises:
        SourceError: the source cannot be read.
    """
    started = time.monotonic()
    tried = packed_bytes = listed_bytes = 0
    samples = select_samples(listing, plan.samples(0)[:_TRIED_IMAGES])
    for index, data in iter_images(source, samples):
        try:
            packed_bytes += len(pack_image(data, policy).data)
            listed_bytes += len(data)
        except ImageError as error:
            yield f"unreadable: {samples.describe(index)}: {error}"
        tried += 1
        if time.monotonic() - started > _TRIED_SECONDS:
            break
    seconds = (time.monotonic() - started) / tried * len(listing) / workers
    share = packed_bytes / listed_bytes if listed_bytes else 1.0
    total = float(listing.sizes.sum()) * share + len(listing) * SAMPLE_OVERHEAD
    yield f"{plan.num_shards:,} shards, about {total / 1e6:,.1f} MB"
    yield f"about {_duration(seconds)} with {workers} workers, as fast as the first {tried} images"


def describe_state(output: Folder, stem: str) -> str:
    """Say what the output holds of the split NAME-SPLIT already."""
    if is_unfinished(output, stem):
        return f"{output.location} holds an unfinished build of {stem}, which the build continues"
    manifest = {entry.stem: entry for entry in find_manifests(output).values()}.get(stem)
    if manifest is not None:
        return f"{output.location} holds {stem} already, with {manifest.num_samples:,} images"
    if foreign := shards_of(output, stem):
        return f"{output.location} holds {foreign[0]} and no manifest of it, so the build refuses this output"
    return f"{output.location} holds no {stem} yet"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"
