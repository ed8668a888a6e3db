"""Packs ImageNet, however it is held, into WebDataset tars.

The command is `python -m sharding.build --source P --output U --split train`.

The library form is `build(BuildOptions(...))`.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sharding.command import run_command, say_line
from sharding.tasks import slurm_task

if TYPE_CHECKING:
    from sharding.manifest import Manifest
    from sharding.plan import Plan
    from sharding.sources import Listing

_AUDIT_LINES = 5


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Pack images into WebDataset tars with a manifest and an index.

    The same source and settings give the same bytes, with any number of workers or tasks. An interrupted build goes on
    where it was when the same command is given again.
    """

    source: str = "imagenet"
    """folder or URI of the images: ImageNet's archives, or class folders (CLASS/IMAGE or SPLIT/CLASS/IMAGE in it)"""
    output: str = "shards"
    """folder or URI for the shards"""
    split: str | None = None
    """train, validation, …; by default every split found in the source"""
    name: str = "imagenet1k"
    """prefix of all files"""
    source_format: Literal["auto", "ilsvrc", "kaggle", "parquet", "folder"] = "auto"
    """how the source is held, where it is not to be guessed"""
    classes: str | None = None
    """file of lines "WNID NAME" that gives the labels (sorted by WNID); by default what the source has"""
    shard_mb: int = 128
    """size of a shard in MB (10^6 bytes) of the images as they are in the source, 1 to 4096"""
    seed: int = 0
    """of the shuffle"""
    shorter_side: int | None = None
    """re-encode larger images to this shorter side in pixels (400 and 256 are the useful ones)"""
    quality: int = 90
    """JPEG quality of images re-encoded by --shorter-side"""
    decode_check: bool = True
    """decode each image once to prove that it is whole"""
    on_bad: Literal["stop", "skip"] = "stop"
    """what an unreadable image does: stop the build, or be left out and listed in the manifest"""
    workers: int | None = None
    """processes; by default one for each CPU this process may use"""
    task_index: int | None = None
    """which of --task-count tasks this is, from 0; by default from SLURM's variables"""
    task_count: int | None = None
    """how many tasks share the work; the last to finish publishes the manifest"""

    def check(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ShardingError: which, and what is allowed.
        """
        from sharding.errors import ShardingError

        if (self.task_index is None) != (self.task_count is None):
            raise ShardingError("--task-index and --task-count belong together: give both or neither")
        allowed = {
            "shard_mb": (1, 4096),
            "quality": (1, 100),
            "seed": (0, 2**64 - 1),
            "shorter_side": (16, 4096),
            "workers": (1, 1024),
            "task_count": (1, 10**6),
            "task_index": (0, (self.task_count or 1) - 1),
        }
        for field, (least, most) in allowed.items():
            value = getattr(self, field)
            if value is not None and not least <= value <= most:
                raise ShardingError(f"--{field.replace('_', '-')} {value}: it must be from {least:,} to {most:,}")
        for field in ("name", "split"):
            value = getattr(self, field)
            if value is not None and not value.replace("_", "").replace("-", "").isalnum():
                raise ShardingError(f"--{field} {value!r}: only letters, digits, - and _ may be in it")


def build(options: BuildOptions, *, say: Callable[[str], None] = lambda line: None) -> list[Manifest]:
    """Pack the splits that the options ask for.

    Args:
        options: what to do; SLURM's variables are not looked at here.
        say: takes lines for the user.

    Returns:
        The manifest of each split that is complete; a task that is not the last to finish returns none.

    Raises:
        ShardingError: the options, the source or the output are wrong; nothing half-written is published.
    """
    from sharding.pool import available_cpus, prepare_workers

    options.check()
    if (options.workers or available_cpus()) > 1:
        prepare_workers("sharding.writer")

    from sharding.sources import list_source

    form = None if options.source_format == "auto" else options.source_format
    # All are listed before the first is packed: what is missing for the last should not be said hours later.
    listings = list_source(options.source, options.split, form, options.classes)
    manifests = [_build_split(options, listing, say) for listing in listings]
    return [manifest for manifest in manifests if manifest is not None]


def _build_split(options: BuildOptions, listing: Listing, say: Callable[[str], None]) -> Manifest | None:
    """Pack one split; None if other tasks have not finished theirs."""
    from sharding.images import ImagePolicy
    from sharding.labels import agree_with_published
    from sharding.packing import Packing
    from sharding.plan import make_plan
    from sharding.pool import available_cpus, run_jobs
    from sharding.progress import Progress
    from sharding.sources.detect import open_source
    from sharding.storage import Folder
    from sharding.writer import pack_shard

    started = time.monotonic()
    output = Folder.open(options.output)
    output.create()
    listing = agree_with_published(output, options.name, listing)
    _say_listing(listing, say)
    keys = listing.keys.to_pylist()
    plan = make_plan(
        keys,
        listing.sizes,
        seed=options.seed,
        shard_bytes=options.shard_mb * 10**6,
        blocks=listing.blocks,
    )
    packing = Packing(output, options.name, listing, plan, _settings(options, listing, plan, keys))
    if packing.manifest is not None:
        named = packing.name_classes() if options.classes else None
        manifest = named or packing.manifest
        say(f"{packing.stem}: complete already, {manifest.num_samples:,} images, digest {manifest.digest}")
        if named:
            say("  its classes have names now, and so it has another digest: runs that were begun with the former one,")
            say(f"  {packing.manifest.digest}, do not go on with it")
        return manifest
    task_index, task_count = options.task_index or 0, options.task_count or 1
    mine = len(range(task_index, plan.num_shards, task_count))
    workers = max(1, min(options.workers or available_cpus(), mine))
    policy = ImagePolicy(shorter_side=options.shorter_side, quality=options.quality, decode_check=options.decode_check)
    samples = sum(len(plan.samples(number)) for number in range(task_index, plan.num_shards, task_count))
    with packing.lock(task_index, task_count), Progress(packing.stem, samples) as progress:
        jobs = packing.jobs(
            open_source(options.source),
            policy,
            skip_bad=options.on_bad == "skip",
            task_index=task_index,
            task_count=task_count,
        )
        for part, was_there in run_jobs(pack_shard, jobs, workers):
            if part is not None:
                progress.add(part.shard.samples, part.shard.bytes, written=not was_there)
        manifest = packing.finish()
    if manifest is not None:
        packing.tidy()
    if manifest is None:
        say(
            f"{packing.stem}: task {task_index} of {task_count} is done; some shards are left to the other tasks; "
            "if those have ended already, give the command once more"
        )
        return None
    _say_summary(manifest, progress.written_samples, time.monotonic() - started, say)
    return manifest


def _settings(options: BuildOptions, listing: Listing, plan: Plan, keys: Sequence[str]) -> dict[str, object]:
    """What decides the bytes of the shards."""
    from sharding.imagenet import audit, is_imagenet

    return {
        "samples_listed": len(listing),
        "whole_imagenet": is_imagenet(listing.classes, listing.split)
        and not audit(listing.split, listing.labels, listing.classes),
        "listing_sha256": listing.digest(),
        "shard_mb": options.shard_mb,
        "seed": options.seed,
        "shorter_side": options.shorter_side,
        "quality": options.quality if options.shorter_side else None,
        "decode_check": options.decode_check,
        # Row groups and their sizes decide the plan too; elsewhere it follows from the listing, the seed and the size.
        **({} if listing.blocks is None else {"plan_sha256": plan.digest(keys)}),
    }


def _say_listing(listing: Listing, say: Callable[[str], None]) -> None:
    from sharding.imagenet import NUM_CLASSES, audit, has_wordnet_ids, is_imagenet

    say(f"{listing.split}: {len(listing):,} images of {len(listing.classes)} classes, held as {listing.source_format}")
    if has_wordnet_ids(listing.classes) and len(listing.classes) < NUM_CLASSES:
        say(
            f"  a partial class list: {len(listing.classes)} classes instead of ImageNet's {NUM_CLASSES}; "
            "labels are positions in the sorted list of these"
        )
    if has_wordnet_ids(listing.classes) and all(entry.name == entry.wnid for entry in listing.classes):
        say("  the classes have no names but their WordNet ids; --classes LOC_synset_mapping.txt gives them names")
    if is_imagenet(listing.classes, listing.split):
        faults = audit(listing.split, listing.labels, listing.classes)
        for fault in faults[:_AUDIT_LINES]:
            say(f"  not the whole of ImageNet: {fault}")
        if len(faults) > _AUDIT_LINES:
            say(f"  and in {len(faults) - _AUDIT_LINES} classes more")
    for note in listing.notes:
        say(f"  {note}")


def _say_summary(manifest: Manifest, written: int, seconds: float, say: Callable[[str], None]) -> None:
    total = sum(shard.bytes for shard in manifest.shards)
    there = manifest.num_samples - written
    say(
        f"{manifest.stem}: {manifest.num_samples:,} images in {len(manifest.shards)} shards, {total / 1e6:,.1f} MB, "
        f"{seconds:,.1f} s, {written / seconds:,.0f} images/s"
        + (f" ({there:,} images were there already)" if there else "")
    )
    odd = Counter((entry.action, entry.reason) for entry in manifest.odd)
    for (action, reason), count in sorted(odd.items()):
        say(f"  {action}: {count} ({reason})")
    say(f"  digest {manifest.digest}")


def _build_and_say(options: BuildOptions) -> int:
    if options.task_count is None and options.task_index is None:
        index, count = slurm_task(os.environ)
        options = dataclasses.replace(options, task_index=index, task_count=count)
    build(options, say=say_line)
    return 0


def main() -> int:
    """Run the command; gives the exit code."""
    return run_command(
        "python -m sharding.build",
        BuildOptions,
        _build_and_say,
        places=lambda options: f"{options.source} or {options.output}",
        ended="finished shards are kept, the same command goes on where it was",
    )


if __name__ == "__main__":
    raise SystemExit(main())
