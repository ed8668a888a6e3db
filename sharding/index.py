"""Manifest and index for WebDataset tars that others packed: `python -m sharding.index --shards U`.

The tars are read once and left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sharding.command import ShardsOptions, run_command, say_line

if TYPE_CHECKING:
    import pyarrow as pa

    from sharding.manifest import ClassInfo, Manifest
    from sharding.scan import Scan
    from sharding.storage import Folder

_WNID = re.compile(r"(?:^|[/_])(n\d{8})_")
_NAMED_FAULTS = 20


@dataclass(frozen=True, kw_only=True)
class IndexOptions(ShardsOptions):
    """Make manifest and index for WebDataset tars named NAME-SPLIT-NUMBER.tar, without touching the tars."""

    classes: str | None = None
    """file of lines "WNID NAME", sorted by WNID, that names the classes; by default what the samples say"""
    on_bad: Literal["stop", "skip"] = "stop"
    """what an unreadable sample does: stop, or be left out of the index and listed in the manifest"""


def index(options: IndexOptions, *, say: Callable[[str], None] = lambda line: None) -> list[Manifest]:
    """Describe tars that others packed.

    Args:
        options: which, and how.
        say: takes lines for the user.

    Returns:
        The manifest of each split.

    Raises:
        ShardingError: there are no such tars, a number is missing between them, or samples are damaged.
    """
    from sharding.errors import ManifestError
    from sharding.manifest import SHARD_NAME
    from sharding.storage import Folder
    from sharding.unfinished import is_unfinished

    folder = Folder.open(options.shards)
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
    manifests = []
    for name, split in found:
        if is_unfinished(folder, f"{name}-{split}"):
            raise ManifestError(
                f"{options.shards!r} holds an unfinished build of {name}-{split}: samples may be missing. "
                "Give the build's command again (python -m sharding.build), which goes on where it was."
            )
    for (name, split), numbered in sorted(found.items()):  # train before validation, which may take its classes
        missing = sorted(set(range(max(numbered) + 1)) - set(numbered))
        if missing:
            raise ManifestError(
                f"{options.shards!r}: of {name}-{split} the numbers {', '.join(map(str, missing[:10]))} are missing. "
                "Fetch them."
            )
        shards = [numbered[number] for number in sorted(numbered)]
        manifests.append(_index_split(folder, name, split, shards, options, say))
    return manifests


def _index_split(
    folder: Folder, name: str, split: str, shards: list[str], options: IndexOptions, say: Callable[[str], None]
) -> Manifest:
    import numpy as np
    import pyarrow as pa

    from sharding.errors import ManifestError
    from sharding.imagenet import audit, is_imagenet
    from sharding.manifest import Manifest, OddImage, ShardInfo, index_digest, write_manifest
    from sharding.pool import available_cpus, run_jobs
    from sharding.progress import Progress
    from sharding.scan import ScanJob, scan_for_index

    workers = max(1, min(options.workers or available_cpus(), len(shards)))
    jobs = (ScanJob(folder, shard, options.decode_check) for shard in shards)
    scans: dict[str, Scan] = {}
    tables: dict[str, pa.Table] = {}
    number = {shard: position for position, shard in enumerate(shards)}
    with Progress(f"index {name}-{split}", None) as progress:
        for scan, table in run_jobs(scan_for_index, jobs, workers):
            scans[scan.name] = scan
            shard_column = pa.array(np.full(len(table), number[scan.name], np.int32))
            tables[scan.name] = table.set_column(table.schema.get_field_index("shard"), "shard", shard_column)
            progress.add(len(table), scan.bytes, written=True)
    ordered = [scans[shard] for shard in shards]
    faults = [fault for scan in ordered for fault in scan.faults]
    # A shard that ends too early, or is no tar, has lost samples that nobody can list.
    fatal = [fault for fault in faults if not fault.key or options.on_bad == "stop"]
    if fatal:
        listed = "\n  ".join(str(fault) for fault in fatal[:_NAMED_FAULTS])
        more = f"\n  and {len(fatal) - _NAMED_FAULTS} more" if len(fatal) > _NAMED_FAULTS else ""
        advice = "Fetch the shards again" + ("." if not fatal[0].key else ", or leave the samples out: --on-bad skip.")
        raise ManifestError(f"{name}-{split} is damaged:\n  {listed}{more}\n{advice}")
    table = pa.concat_tables([tables[shard] for shard in shards]).combine_chunks()
    if not table.num_rows:
        raise ManifestError(f"{name}-{split} holds no samples")
    keys, repeats = np.unique(table["key"].to_numpy(zero_copy_only=False), return_counts=True)
    if (repeats > 1).any():
        raise ManifestError(f"{name}-{split}: the key {keys[repeats > 1][0]!r} comes more than once")
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
            "whole_imagenet": is_imagenet(classes, split) and not audit(split, labels, classes),
        },
        odd=tuple(OddImage(fault.key, fault.file, fault.what, "skipped") for fault in faults),
    )
    write_manifest(folder, manifest, table)
    say(f"{manifest.stem}: {manifest.num_samples:,} images of {len(classes)} classes in {len(shards)} shards")
    if faults:
        say(f"  {len(faults)} samples left out")
    say(f"  digest {manifest.digest}")
    return manifest


def _classes(
    folder: Folder, name: str, table: pa.Table, scans: list[Scan], options: IndexOptions
) -> tuple[ClassInfo, ...]:
    """The classes by label: as given, as another split of the name has them, or as the samples say."""
    from sharding.errors import ManifestError
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
    of_label: dict[int, str] = {}
    for scan in scans:
        of_label |= scan.classes
    for key, label in zip(table["key"].to_pylist(), labels.tolist(), strict=True):
        if label not in of_label and (match := _WNID.search(key)):
            of_label[label] = match[1]
    return tuple(ClassInfo(of_label.get(label, str(label)), of_label.get(label, str(label))) for label in range(count))


def _index_and_say(options: IndexOptions) -> int:
    index(options, say=say_line)
    return 0


def main() -> int:
    """Run the command; gives the exit code."""
    return run_command(
        "python -m sharding.index",
        IndexOptions,
        _index_and_say,
        places=lambda options: options.shards,
        ended="nothing was written",
    )


if __name__ == "__main__":
    raise SystemExit(main())
