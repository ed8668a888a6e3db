"""Pack ImageNet, in whichever form it is stored, into WebDataset tars.

As a command: `python -m sharding.build --source P --output U --split train`.
As a library: `build(BuildOptions(...))`.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sharding.cli import count_odd, run_command
from sharding.console import Log, no_log, print_line
from sharding.errors import ShardingError
from sharding.slurm import slurm_task
from sharding.source_format import SourceFormat

if TYPE_CHECKING:
    from sharding.images import ImagePolicy
    from sharding.manifest import Manifest
    from sharding.plan import Plan
    from sharding.sources import Listing

_LISTED_DIFFERENCES = 5
_LISTED_FAULTS = 20


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Pack images into WebDataset tars with a manifest and an index.

    The same source and settings give the same bytes, with any number of workers or tasks. An interrupted build resumes
    when the same command is given again.
    """

    source: str = "imagenet"
    """folder, zip or URI: ImageNet's archives, class folders (SPLIT/CLASS/IMAGE), images with label maps"""
    output: str = "shards"
    """folder or URI for the shards"""
    split: str | None = None
    """train, validation, …; by default every split found in the source"""
    hold_out: float | None = None
    """share of the images of each class, such as 0.2, that becomes the validation split of a source without one; images
    with label maps or objects are divided as a whole"""
    name: str = "imagenet1k"
    """prefix of all files"""
    source_format: Literal["auto", SourceFormat] = "auto"
    """form in which the source is stored; auto detects it"""
    classes: str | None = None
    """list of the classes: lines "WNID NAME", CSV or JSON; gives the labels; by default the classes of the source"""
    shard_mb: int = 128
    """size of a shard in MB (10^6 bytes) of source images, 1 to 4096"""
    seed: int = 0
    """seed of the shuffle, and of the choice of what --hold-out holds out"""
    shorter_side: int | None = None
    """re-encode larger images to this shorter side in pixels (400 and 256 are useful values)"""
    quality: int = 90
    """JPEG quality of images re-encoded by --shorter-side"""
    decode_check: bool = True
    """decode each image once to prove that it is complete"""
    on_bad: Literal["stop", "skip"] = "stop"
    """on an unreadable image or a wrong annotation: stop the build, or skip it; the manifest lists or counts it"""
    only_annotated: bool = False
    """leave out images without objects (coco, coco-json, yolo, voc-xml), from which a training would learn nothing"""
    workers: int | None = None
    """number of worker processes; by default one for each CPU this process may use"""
    image_member: str | None = None
    """extension of the images in class folders, where several lie side by side: jpg packs 1.jpg and not 1.png"""
    dry_run: bool = False
    """show what would be packed and what is left out and why, with shards, bytes and time; write nothing"""
    task_index: int | None = None
    """index of this task among --task-count tasks, from 0; by default from SLURM's variables"""
    task_count: int | None = None
    """number of tasks that share the work; the last task to finish publishes the manifest"""

    def check(self) -> None:
        """Refuse values outside their allowed range.

        Raises:
            ShardingError: a value is not allowed; the message names the flag and the allowed range.
        """
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
        if self.hold_out is not None and not 0 < self.hold_out < 1:
            raise ShardingError(f"--hold-out {self.hold_out}: it must be a share between 0 and 1, such as 0.2")
        for field in ("name", "split"):
            value = getattr(self, field)
            if value is not None and not value.replace("_", "").replace("-", "").isalnum():
                raise ShardingError(f"--{field} {value!r}: only letters, digits, - and _ may be in it")


def build(options: BuildOptions, *, log: Log = no_log, own_process: bool = False) -> list[Manifest]:
    """Pack the splits that the options ask for.

    Args:
        options: source, output and settings. This function does not read SLURM's variables; the command does.
        log: function that takes lines of text for the user.
        own_process: whether a single worker is a process of its own too, as in the command: a decoder that crashes
            then does not end this process.

    Returns:
        The manifest of each complete split; a split with shards left to other tasks has none.

    Raises:
        ShardingError: the options, the source or the output are wrong; no incomplete file is published.
    """
    from sharding.pool import available_cpus, prepare_workers

    options.check()
    if own_process or (options.workers or available_cpus()) > 1:
        prepare_workers("sharding.writer")

    form = None if options.source_format == "auto" else options.source_format
    # List all splits before packing the first: a fault in the last one should show now, not hours later.
    listings = _list(options, form)
    listings = [_choose_annotated(options, listing) for listing in listings]
    if options.dry_run:
        for listing in listings:
            _show_split(options, listing, log)
        return []
    manifests = [_build_split(options, listing, log, own_process) for listing in listings]
    return [manifest for manifest in manifests if manifest is not None]


def _list(options: BuildOptions, form: SourceFormat | None) -> list[Listing]:
    """List the splits to pack."""
    from sharding.sources import list_divided, list_source

    what = (form, options.classes, options.image_member)
    if options.hold_out is None:
        return list_source(options.source, options.split, *what)
    return list_divided(options.source, options.hold_out, options.split, *what, seed=options.seed)


def _choose_annotated(options: BuildOptions, listing: Listing) -> Listing:
    """Refuse wrong annotations unless they may be skipped, and leave out images without objects if so asked.

    Raises:
        ShardingError: annotations are wrong; the message lists the first.
    """
    from sharding.sources.object_listing import keep_annotated

    if listing.faults and options.on_bad == "stop":
        more = len(listing.faults) - _LISTED_FAULTS
        shown = "\n  ".join(listing.faults[:_LISTED_FAULTS]) + (f"\n  and {more:,} more" if more > 0 else "")
        raise ShardingError(
            f"{len(listing.faults):,} wrong annotations in split {listing.split}:\n  {shown}\nMend them, or leave "
            "them out with --on-bad skip."
        )
    return keep_annotated(listing) if options.only_annotated else listing


def _build_split(options: BuildOptions, listing: Listing, log: Log, own_process: bool) -> Manifest | None:
    """Pack one split; returns None while shards of other tasks are missing."""
    from sharding.division import check_division
    from sharding.labels import align_with_published
    from sharding.packing import Packing
    from sharding.pool import run_jobs, worker_count
    from sharding.progress import Progress
    from sharding.sources.detect import open_source
    from sharding.storage import Folder
    from sharding.work_folder import lock_work_folder
    from sharding.writer import pack_shard

    started = time.monotonic()
    if options.shorter_side is not None and (listing.label_maps is not None or listing.documents is not None):
        what = "label maps" if listing.documents is None else "boxes"
        raise ShardingError(f"--shorter-side makes images smaller, but not their {what}: leave it out")
    output = Folder.open(options.output)
    output.create()
    listing = align_with_published(output, options.name, listing)
    _log_listing(listing, log)
    keys = listing.keys.to_pylist()
    plan = _plan(options, listing)
    settings = _settings(options, listing, plan, keys)
    check_division(output, options.name, listing.split, settings)
    packing = Packing(output, options.name, listing, plan, settings)
    if packing.manifest is not None:
        named = packing.add_class_names() if options.classes else None
        manifest = named or packing.manifest
        log(f"{packing.stem}: complete already, {manifest.num_samples:,} images, digest {manifest.digest}")
        if named:
            log("  the manifest has the names of the classes now, and therefore another digest: runs that began with")
            log(f"  the previous digest, {packing.manifest.digest}, cannot resume with it")
        return manifest
    task_index, task_count = options.task_index or 0, options.task_count or 1
    own_shards = range(task_index, plan.num_shards, task_count)
    workers = worker_count(options.workers, len(own_shards))
    policy = _policy(options)
    samples = sum(len(plan.samples(number)) for number in own_shards)
    with lock_work_folder(output, packing.stem, task_index, task_count), Progress(packing.stem, samples) as progress:
        jobs = packing.jobs(
            open_source(options.source),
            policy,
            skip_bad=options.on_bad == "skip",
            task_index=task_index,
            task_count=task_count,
        )
        for record, was_finished in run_jobs(pack_shard, jobs, workers, own_process=own_process):
            if record is not None:
                progress.add(record.shard.samples, record.shard.bytes, written=not was_finished)
        manifest = packing.finish()
    if manifest is None:
        log(
            f"{packing.stem}: task {task_index} of {task_count} is done; some shards are left to the other tasks; "
            "if those have ended already, give the command once more"
        )
        return None
    packing.remove_work_folder()
    _log_summary(manifest, progress.written_samples, time.monotonic() - started, log)
    return manifest


def _show_split(options: BuildOptions, listing: Listing, log: Log) -> None:
    """Show what a build of a split would do, without writing anything."""
    from sharding.dry_run import describe_state, estimate
    from sharding.labels import align_with_published
    from sharding.pool import worker_count
    from sharding.sources.detect import open_source
    from sharding.storage import Folder

    output = Folder.open(options.output)
    listing = align_with_published(output, options.name, listing)
    _log_listing(listing, log)
    plan = _plan(options, listing)
    policy = _policy(options)
    workers = worker_count(options.workers, plan.num_shards)
    for line in estimate(open_source(options.source), listing, plan, policy, workers):
        log(f"  {line}")
    log(f"  {describe_state(output, f'{options.name}-{listing.split}')}; nothing was written")


def _policy(options: BuildOptions) -> ImagePolicy:
    from sharding.images import ImagePolicy

    return ImagePolicy(shorter_side=options.shorter_side, quality=options.quality, decode_check=options.decode_check)


def _plan(options: BuildOptions, listing: Listing) -> Plan:
    from sharding.plan import make_plan

    return make_plan(
        listing.keys.to_pylist(),
        listing.sizes,
        seed=options.seed,
        shard_bytes=options.shard_mb * 10**6,
        blocks=listing.blocks,
    )


def _settings(options: BuildOptions, listing: Listing, plan: Plan, keys: Sequence[str]) -> dict[str, object]:
    """The settings that decide the bytes of the shards."""
    from sharding.imagenet import is_whole_imagenet

    return {
        "samples_listed": len(listing),
        "whole_imagenet": is_whole_imagenet(listing.split, listing.labels, listing.classes),
        "listing_sha256": listing.digest(),
        "shard_mb": options.shard_mb,
        "seed": options.seed,
        "shorter_side": options.shorter_side,
        "quality": options.quality if options.shorter_side else None,
        "decode_check": options.decode_check,
        **({} if options.hold_out is None else {"hold_out": options.hold_out}),
        **({"only_annotated": True} if options.only_annotated else {}),
        **({"annotations_left_out": len(listing.faults)} if listing.faults else {}),
        # With parquet, row groups and their sizes decide the plan too; else the listing, the seed and the size do.
        **({} if listing.blocks is None else {"plan_sha256": plan.digest(keys)}),
    }


def _log_listing(listing: Listing, log: Log) -> None:
    from sharding.imagenet import NUM_CLASSES, compare_with_imagenet, has_wordnet_ids, is_imagenet

    log(f"{listing.split}: {len(listing):,} images of {len(listing.classes)} classes, held as {listing.source_format}")
    if has_wordnet_ids(listing.classes) and len(listing.classes) < NUM_CLASSES:
        log(
            f"  a partial class list: {len(listing.classes)} classes instead of ImageNet's {NUM_CLASSES}; "
            "labels are positions in the sorted list of these"
        )
    if has_wordnet_ids(listing.classes) and all(entry.name == entry.wnid for entry in listing.classes):
        log("  the classes have no names but their WordNet ids; --classes LOC_synset_mapping.txt gives them names")
    if is_imagenet(listing.classes, listing.split):
        differences = compare_with_imagenet(listing.split, listing.labels, listing.classes)
        for difference in differences[:_LISTED_DIFFERENCES]:
            log(f"  not the complete ImageNet: {difference}")
        if len(differences) > _LISTED_DIFFERENCES:
            log(f"  and {len(differences) - _LISTED_DIFFERENCES} more differences")
    for note in listing.notes:
        log(f"  {note}")
    for fault in listing.faults[:_LISTED_FAULTS]:
        log(f"  left out: {fault}")
    if len(listing.faults) > _LISTED_FAULTS:
        log(f"  and {len(listing.faults) - _LISTED_FAULTS:,} more wrong annotations")


def _log_summary(manifest: Manifest, written: int, seconds: float, log: Log) -> None:
    total = sum(shard.bytes for shard in manifest.shards)
    from_earlier = manifest.num_samples - written
    log(
        f"{manifest.stem}: {manifest.num_samples:,} images in {len(manifest.shards)} shards, {total / 1e6:,.1f} MB, "
        f"{seconds:,.1f} s, {written / seconds:,.0f} images/s"
        + (f" ({from_earlier:,} images were there already)" if from_earlier else "")
    )
    for line in count_odd(manifest.odd):
        log(line)
    log(f"  digest {manifest.digest}")


def _run(options: BuildOptions) -> int:
    if options.task_count is None and options.task_index is None:
        index, count = slurm_task(os.environ)
        options = dataclasses.replace(options, task_index=index, task_count=count)
    build(options, log=print_line, own_process=True)
    return 0


def main() -> int:
    """Run the command and return the exit code."""
    return run_command(
        "python -m sharding.build",
        BuildOptions,
        _run,
        describe_place=lambda options: f"{options.source} or {options.output}",
        after_interrupt="finished shards are kept; give the same command again to resume",
    )


if __name__ == "__main__":
    raise SystemExit(main())
