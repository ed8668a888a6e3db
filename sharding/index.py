"""Manifest and index for WebDataset tars that other software packed: `python -m sharding.index --shards U`.

The command reads the tars once and does not change them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sharding.cli import ShardsOptions, count_odd, run_command
from sharding.console import Log, no_log, print_line
from sharding.errors import ManifestError

if TYPE_CHECKING:
    import pyarrow as pa

    from sharding.manifest import ClassInfo, Manifest
    from sharding.scan import Scan
    from sharding.storage import Folder

_WNID = re.compile(r"(?:^|[/_])(n\d{8})_")
_LISTED_FAULTS = 20


@dataclass(frozen=True, kw_only=True)
class IndexOptions(ShardsOptions):
    """Make a manifest and an index for WebDataset tars named NAME-SPLIT-NUMBER.tar, without changing the tars."""

    classes: str | None = None
    """file of lines "WNID NAME", sorted by WNID, that names the classes; by default the class ids in the samples"""
    on_bad: Literal["stop", "skip"] = "stop"
    """on an unreadable sample: stop, or leave it out of the index and list it in the manifest"""


def index(options: IndexOptions, *, log: Log = no_log, own_process: bool = False) -> list[Manifest]:
    """Make manifest and index for tars that other software packed.

    Args:
        options: the shards, and how to read them.
        log: function that takes lines of text for the user.
        own_process: whether a single worker is a process of its own too, as in the command: a decoder that crashes
            then does not end this process.

    Returns:
        The manifest of each split.

    Raises:
        ShardingError: there are no such tars, a number between them is missing, or samples are damaged.
    """
    from sharding.storage import Folder
    from sharding.work_folder import refuse_unfinished

    folder = Folder.open(options.shards)
    found = _find_shards(folder, options)
    for name, split in found:
        refuse_unfinished(folder, f"{name}-{split}")
    manifests = []
    for (name, split), numbered in sorted(found.items()):  # train comes first: validation may take its classes
        missing = sorted(set(range(max(numbered) + 1)) - set(numbered))
        if missing:
            raise ManifestError(
                f"{options.shards!r}: of {name}-{split} the numbers {', '.join(map(str, missing[:10]))} are missing. "
                "Fetch them."
            )
        shards = [numbered[number] for number in sorted(numbered)]
        manifests.append(_index_split(folder, name, split, shards, options, log, own_process))
    return manifests


def _find_shards(folder: Folder, options: IndexOptions) -> dict[tuple[str, str], dict[int, str]]:
    """Find the tars that the options name: by (name, split), the file of each number.

    Raises:
        ManifestError: there are none, or two have the same number.
    """
    from sharding.manifest import SHARD_NAME

    found: dict[tuple[str, str], dict[int, str]] = {}
    for file in folder.names():
        match = SHARD_NAME.match(file)
        if match and options.name in (None, match["name"]) and options.split in (None, match["split"]):
            numbered = found.setdefault((match["name"], match["split"]), {})
            other = numbered.setdefault(int(match["number"]), file)
            if other != file:
                raise ManifestError(f"{options.shards!r}: {other} and {file} have the same number. Remove one of them.")
    if not found:
        raise ManifestError(
            f"{options.shards!r} holds no tars named NAME-SPLIT-NUMBER.tar, such as imagenet1k-train-0000.tar"
            + (f", with split {options.split!r}" if options.split else "")
            + (f", with name {options.name!r}" if options.name else "")
        )
    return found


def _index_split(
    folder: Folder, name: str, split: str, shards: list[str], options: IndexOptions, log: Log, own_process: bool
) -> Manifest:
    """Read the tars of one split and publish its index and manifest.

    Raises:
        ManifestError: samples are damaged or repeated, or labels do not fit the classes.
    """
    import numpy as np
    import pyarrow as pa

    from sharding.imagenet import is_whole_imagenet
    from sharding.manifest import Manifest, OddImage, ShardInfo, index_digest, repeated_keys, write_manifest
    from sharding.pool import run_jobs, worker_count
    from sharding.progress import Progress
    from sharding.scan import ScanJob, scan_for_index

    workers = worker_count(options.workers, len(shards))
    jobs = (ScanJob(folder, shard, options.decode_check) for shard in shards)
    scans: dict[str, Scan] = {}
    tables: dict[str, pa.Table] = {}
    number = {shard: position for position, shard in enumerate(shards)}
    with Progress(f"index {name}-{split}", None) as progress:
        for scan, table in run_jobs(scan_for_index, jobs, workers, own_process=own_process):
            scans[scan.name] = scan
            shard_column = pa.array(np.full(len(table), number[scan.name], np.int32))
            tables[scan.name] = table.set_column(table.schema.get_field_index("shard"), "shard", shard_column)
            progress.add(len(table), scan.bytes, written=True)
    ordered = [scans[shard] for shard in shards]
    faults = [fault for scan in ordered for fault in scan.faults]
    # A fault without a key concerns a whole shard: samples are lost whose number is unknown.
    fatal = [fault for fault in faults if not fault.key or options.on_bad == "stop"]
    if fatal:
        listed = "\n  ".join(str(fault) for fault in fatal[:_LISTED_FAULTS])
        more = f"\n  and {len(fatal) - _LISTED_FAULTS} more" if len(fatal) > _LISTED_FAULTS else ""
        advice = "Fetch the shards again" + ("." if not fatal[0].key else ", or leave the samples out: --on-bad skip.")
        raise ManifestError(f"{name}-{split} is damaged:\n  {listed}{more}\n{advice}")
    table = pa.concat_tables([tables[shard] for shard in shards]).combine_chunks()
    if not table.num_rows:
        raise ManifestError(f"{name}-{split} holds no samples")
    if repeated := repeated_keys(table):
        raise ManifestError(f"{name}-{split}: the key {repeated[0]!r} comes more than once")
    classes = _classes(folder, name, table, ordered, options)
    labels = table["label"].to_numpy()
    manifest = Manifest(
        name=name,
        split=split,
        classes=classes,
        shards=tuple(ShardInfo(scan.name, len(tables[scan.name]), scan.bytes, scan.sha256) for scan in ordered),
        index_sha256=index_digest(table),
        settings={
            "packed_by": "others",
            "decode_check": options.decode_check,
            "whole_imagenet": is_whole_imagenet(split, labels, classes),
        },
        odd=(
            *(entry for scan in ordered for entry in scan.odd),
            *(OddImage(fault.key, fault.file, fault.what, "skipped") for fault in faults),
        ),
    )
    write_manifest(folder, manifest, table)
    log(f"{manifest.stem}: {manifest.num_samples:,} images of {len(classes)} classes in {len(shards)} shards")
    if faults:
        log(f"  {len(faults)} samples left out")
    for line in count_odd(manifest.odd):
        log(line)
    log(f"  digest {manifest.digest}")
    return manifest


def _classes(
    folder: Folder, name: str, table: pa.Table, scans: list[Scan], options: IndexOptions
) -> tuple[ClassInfo, ...]:
    """The classes by label: those of --classes, those of another split of the same name, or those of the samples.

    Raises:
        ManifestError: a label is negative, or --classes has too few classes.
    """
    from sharding.manifest import ClassInfo, find_manifests
    from sharding.sources.classes import find_class_list

    labels = table["label"].to_numpy()
    least, count = int(labels.min()), int(labels.max()) + 1
    if least < 0:
        raise ManifestError(f"{name}: label {least} is below 0")
    given = find_class_list(folder, options.classes)
    others = [manifest.classes for (prefix, _), manifest in sorted(find_manifests(folder).items()) if prefix == name]
    known = given.classes if given is not None else max(others, key=len, default=())
    if given is not None and len(known) < count:
        raise ManifestError(f"{name} has the label {count - 1}, but --classes names only {len(known)} classes")
    if len(known) >= count:
        return known
    id_of: dict[int, str] = {}
    for scan in scans:
        id_of |= scan.classes
    for key, label in zip(table["key"].to_pylist(), labels.tolist(), strict=True):
        if label not in id_of and (match := _WNID.search(key)):
            id_of[label] = match[1]
    return tuple(ClassInfo(id_of.get(label, str(label)), id_of.get(label, str(label))) for label in range(count))


def _run(options: IndexOptions) -> int:
    index(options, log=print_line, own_process=True)
    return 0


def main() -> int:
    """Run the command and return the exit code."""
    return run_command(
        "python -m sharding.index",
        IndexOptions,
        _run,
        describe_place=lambda options: options.shards,
        after_interrupt="the tars are unchanged; give the same command again",
    )


if __name__ == "__main__":
    raise SystemExit(main())
