"""Manifest and index for WebDataset tars that other software packed: `python -m sharding.index --shards U`.

The command reads the tars once and does not change them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sharding.cli import ShardsOptions, count_odd, run_command
from sharding.console import Log, no_log, print_line
from sharding.errors import ManifestError

if TYPE_CHECKING:
    import pyarrow as pa

    from sharding.manifest import ClassInfo, Manifest
    from sharding.scan import Fault, Scan
    from sharding.storage import Folder

_LISTED_FAULTS = 20
_LISTED_MEMBERS = 3
_VALIDATION_NAMES = ("val", "valid", "dev")


@dataclass(frozen=True, kw_only=True)
class IndexOptions(ShardsOptions):
    """Make a manifest and an index for WebDataset tars without changing the tars.

    Their names are NAME-SPLIT-NUMBER.tar, or SPLIT-NUMBER-of-COUNT.tar.
    """

    classes: str | None = None
    """list of the classes by label: lines "WNID NAME", CSV or JSON; by default the class ids in the samples"""
    on_bad: Literal["stop", "skip"] = "stop"
    """on an unreadable sample: stop, or leave it out of the index and list it in the manifest"""
    image_member: str | None = None
    """extension of the member that is the image, where a sample has several or an unusual one: input.jpg, bmp"""


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
        ShardingError: there are no such tars, a number between them is missing, samples are damaged, or labels
            contradict each other. No manifest is written then.
    """
    from sharding.find_tars import find_tars
    from sharding.storage import Folder
    from sharding.work_folder import refuse_unfinished

    folder = Folder.open(options.shards)
    found = find_tars(folder, options.name, options.split)
    for name, split in found:
        refuse_unfinished(folder, f"{name}-{split}")
    splits = [
        _read_split(folder, name, split, tars.ordered(), options, own_process)
        for (name, split), tars in sorted(found.items())
    ]
    # All samples of a name decide its classes together: labels must mean the same in each of its splits.
    classes = {
        name: _classes(folder, name, [entry for entry in splits if entry.name == name], options, log)
        for name in dict.fromkeys(entry.name for entry in splits)
    }
    manifests = []
    for entry in splits:
        manifests.append(_publish(folder, entry, classes[entry.name], options, log))
        if found[entry.name, entry.split].begins_at_one:
            log("  its tars are numbered from 1")
    return manifests


@dataclass(frozen=True, kw_only=True)
class _Split:
    """What was read of one split: its scans in the order of the tars, and its index."""

    name: str
    split: str
    scans: list[Scan]
    table: pa.Table

    @property
    def stem(self) -> str:
        return f"{self.name}-{self.split}"

    @property
    def faults(self) -> list[Fault]:
        return [fault for scan in self.scans for fault in scan.faults]


def _read_split(
    folder: Folder, name: str, split: str, shards: list[str], options: IndexOptions, own_process: bool
) -> _Split:
    """Read the tars of one split.

    Raises:
        ManifestError: samples are damaged, repeated or missing.
    """
    import numpy as np
    import pyarrow as pa

    from sharding.pool import run_jobs, worker_count
    from sharding.progress import Progress
    from sharding.scan import ScanJob, scan_for_index

    workers = worker_count(options.workers, len(shards))
    jobs = (ScanJob(folder, shard, options.decode_check, options.image_member) for shard in shards)
    scans: dict[str, Scan] = {}
    tables: dict[str, pa.Table] = {}
    number = {shard: position for position, shard in enumerate(shards)}
    with Progress(f"index {name}-{split}", None) as progress:
        for scan, table in run_jobs(scan_for_index, jobs, workers, own_process=own_process):
            scans[scan.name] = scan
            shard_column = pa.array(np.full(len(table), number[scan.name], np.int32))
            tables[scan.name] = table.set_column(table.schema.get_field_index("shard"), "shard", shard_column)
            progress.add(len(table), scan.bytes, written=True)
    table = pa.concat_tables([tables[shard] for shard in shards]).combine_chunks()
    entry = _Split(name=name, split=split, scans=[scans[shard] for shard in shards], table=table)
    _refuse_faults(entry, options)
    if not table.num_rows:
        raise ManifestError(f"{entry.stem} holds no samples")
    _refuse_repeated(entry)
    return entry


def _refuse_faults(entry: _Split, options: IndexOptions) -> None:
    """Refuse faults that `--on-bad` does not allow.

    Raises:
        ManifestError: there are such faults; the message lists the first.
    """
    # A fault without a key concerns a whole shard: samples are lost whose number is unknown.
    fatal = [fault for fault in entry.faults if not fault.key or options.on_bad == "stop"]
    if fatal:
        listed = "\n  ".join(str(fault) for fault in fatal[:_LISTED_FAULTS])
        more = f"\n  and {len(fatal) - _LISTED_FAULTS} more" if len(fatal) > _LISTED_FAULTS else ""
        advice = "Fetch the shards again" + ("." if not fatal[0].key else ", or leave the samples out: --on-bad skip.")
        raise ManifestError(f"{entry.stem} is damaged:\n  {listed}{more}\n{advice}")


def _refuse_repeated(entry: _Split) -> None:
    """Refuse a key that two shards have.

    Raises:
        ManifestError: there is such a key; the message names the shards.
    """
    import pyarrow.compute as pc

    from sharding.index_table import repeated_keys

    repeated = repeated_keys(entry.table)
    if repeated:
        numbers = entry.table.filter(pc.field("key") == repeated[0])["shard"].to_pylist()
        shards = " and ".join(entry.scans[number].name for number in numbers[:2])
        raise ManifestError(
            f"{entry.stem}: {len(repeated):,} keys come more than once, such as {repeated[0]!r} in {shards}. Pack the "
            "samples again with keys that differ, or remove a shard that is there twice."
        )


def _publish(
    folder: Folder, entry: _Split, classes: tuple[ClassInfo, ...], options: IndexOptions, log: Log
) -> Manifest:
    """Write index and manifest of one split, and report what was found."""
    import numpy as np

    from sharding.imagenet import is_whole_imagenet
    from sharding.index_table import index_digest
    from sharding.manifest import Manifest, OddImage, ShardInfo, write_manifest

    counts = np.bincount(entry.table["shard"].to_numpy(), minlength=len(entry.scans)).tolist()
    left_out = [f"{scan.name}: {name}" for scan in entry.scans for name in scan.left_out]
    manifest = Manifest(
        name=entry.name,
        split=entry.split,
        classes=classes,
        shards=tuple(
            ShardInfo(scan.name, count, scan.bytes, scan.sha256)
            for scan, count in zip(entry.scans, counts, strict=True)
        ),
        index_sha256=index_digest(entry.table),
        settings={
            "packed_by": "others",
            "decode_check": options.decode_check,
            "whole_imagenet": is_whole_imagenet(entry.split, entry.table["label"].to_numpy(), classes),
            **({"image_member": options.image_member} if options.image_member else {}),
            **({"members_left_out": len(left_out)} if left_out else {}),
        },
        odd=(
            *(odd for scan in entry.scans for odd in scan.odd),
            *(OddImage(fault.key, fault.file, fault.what, "skipped") for fault in entry.faults),
        ),
    )
    write_manifest(folder, manifest, entry.table)
    log(f"{manifest.stem}: {manifest.num_samples:,} images of {len(classes)} classes in {len(entry.scans)} shards")
    if entry.faults:
        log(f"  {len(entry.faults)} samples left out")
    for line in count_odd(manifest.odd):
        log(line)
    if left_out:
        shown = ", ".join(left_out[:_LISTED_MEMBERS]) + (", …" if len(left_out) > _LISTED_MEMBERS else "")
        log(f"  {len(left_out):,} members that belong to no sample were left out ({shown})")
    if not all(scan.neighbours for scan in entry.scans):
        log("  members of a sample are not neighbours: trainings here read them, WebDataset and timm do not")
    if entry.split in _VALIDATION_NAMES:
        log(f"  to evaluate trainings on it: --train.data.validation-split {entry.split}")
    log(f"  digest {manifest.digest}")
    return manifest


def _classes(folder: Folder, name: str, splits: list[_Split], options: IndexOptions, log: Log) -> tuple[ClassInfo, ...]:
    """The classes by label: those of --classes, those of a published split of the name, or those of the samples.

    Raises:
        ManifestError: samples contradict each other or the list, or the list has too few classes.
    """
    import numpy as np

    from sharding.class_agreement import check_against_list, check_samples_agree, classes_of_samples
    from sharding.manifest import find_manifests
    from sharding.sample_labels import ClassEvidence
    from sharding.sources.class_files import find_class_list

    labels: list[int] = np.unique(np.concatenate([entry.table["label"].to_numpy() for entry in splits])).tolist()
    count = labels[-1] + 1
    evidence = ClassEvidence.merged([scan.evidence for entry in splits for scan in entry.scans])
    own = {entry.split for entry in splits}
    published = {
        split: manifest.classes
        for (prefix, split), manifest in sorted(find_manifests(folder).items())
        if prefix == name and split not in own
    }
    given = find_class_list(folder, options.classes)
    check_samples_agree(name, evidence)
    if given is not None and options.classes is not None:
        log(f"{name}: {len(given.classes):,} classes from {given.origin}, read as {given.form}")
    if given is not None:
        check_against_list(name, evidence, given.classes, given.origin)
    for split, classes in published.items():
        check_against_list(name, evidence, classes, f"{name}-{split}.json")
    if given is not None and len(given.classes) < count:
        raise ManifestError(f"{name} has the label {count - 1}, but --classes names only {len(given.classes)} classes")
    known = given.classes if given is not None else max(published.values(), key=len, default=())
    return known if len(known) >= count else classes_of_samples(name, evidence, labels)


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
