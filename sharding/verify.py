"""Compare shards with their manifest and index: `python -m sharding.verify --shards U`.

The command reads every shard once and compares its SHA-256, its samples, their labels, and the bytes and the size of
every image with the manifest and the index; it also decodes every image. It reports each fault by shard and key; the
exit code is 1 if there are any.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharding.cli import ShardsOptions, run_command
from sharding.console import Log, no_log, print_line
from sharding.errors import ManifestError

if TYPE_CHECKING:
    import pyarrow as pa

    from sharding.manifest import Manifest
    from sharding.scan import Fault
    from sharding.storage import Folder

_LISTED_SAMPLES = 5  # per shard, of the samples that are missing or unexpected


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(ShardsOptions):
    """Re-hash, recount and decode shards, and compare them with their manifest and index."""


def verify(options: VerifyOptions, *, log: Log = no_log, own_process: bool = False) -> list[Fault]:
    """Verify all splits that the options name.

    Args:
        options: the shards, and how to read them.
        log: function that takes lines of text for the user.
        own_process: whether a single worker is a process of its own too, as in the command: a decoder that crashes
            then does not end this process.

    Returns:
        All faults; empty if the shards match their manifests.

    Raises:
        ManifestError: there is no manifest, or a manifest or an index is damaged.
    """
    from sharding.manifest import find_manifests, load_manifest
    from sharding.storage import Folder

    folder = Folder.open(options.shards)
    manifests = [
        manifest
        for (name, split), manifest in sorted(find_manifests(folder).items())
        if options.name in (None, name) and options.split in (None, split)
    ]
    if not manifests:
        load_manifest(options.shards, options.split or "train", options.name)  # raises the error that explains why
        raise ManifestError(f"no manifest in {options.shards!r} fits --name {options.name} --split {options.split}")
    faults = _check_info(folder, manifests)
    for manifest in manifests:
        found = _verify_split(folder, manifest, options, own_process)
        log(f"{manifest.stem}: {manifest.num_samples:,} images in {len(manifest.shards)} shards, {len(found)} faults")
        faults += found
    return faults


def _verify_split(folder: Folder, manifest: Manifest, options: VerifyOptions, own_process: bool) -> list[Fault]:
    """Verify one split.

    Raises:
        ManifestError: the index is missing or damaged.
    """
    import pyarrow.compute as pc

    from sharding.imagenet import compare_with_imagenet, is_imagenet
    from sharding.manifest import load_index, shards_of
    from sharding.pool import run_jobs, worker_count
    from sharding.progress import Progress
    from sharding.scan import Fault
    from sharding.verify_shard import VerifyJob, verify_shard

    index = load_index(options.shards, manifest)
    faults = _check_index(manifest, index)
    listed = {shard.name for shard in manifest.shards}
    faults += [
        Fault(file, "", "is not in the manifest") for file in shards_of(folder, manifest.stem) if file not in listed
    ]
    jobs = (
        # A filter copies the rows; pickling a slice for the worker would include the whole index.
        VerifyJob(folder, manifest, number, index.filter(pc.field("shard") == number), options.decode_check)
        for number in range(len(manifest.shards))
    )
    workers = worker_count(options.workers, len(manifest.shards))
    with Progress(f"verify {manifest.stem}", manifest.num_samples) as progress:
        for number, found in run_jobs(verify_shard, jobs, workers, own_process=own_process):
            faults += found
            progress.add(manifest.shards[number].samples, manifest.shards[number].bytes, written=True)
    if manifest.settings.get("whole_imagenet") and is_imagenet(manifest.classes, manifest.split):
        labels = index["label"].to_numpy()
        differences = compare_with_imagenet(manifest.split, labels, manifest.classes)
        faults += [Fault(f"{manifest.stem}.json", "", text) for text in differences]
    return sorted(faults, key=lambda fault: (fault.file, fault.key, fault.what))


def _check_index(manifest: Manifest, index: pa.Table) -> list[Fault]:
    """Compare the index with the manifest.

    `load_index` has checked the digests of both, so a difference means that the software that wrote them was wrong.
    """
    import numpy as np

    from sharding.index_table import repeated_keys
    from sharding.scan import Fault

    file, faults = f"{manifest.stem}.parquet", []
    counts = np.bincount(index["shard"].to_numpy(), minlength=len(manifest.shards))
    for shard, count in zip(manifest.shards, counts, strict=True):
        if shard.samples != count:
            faults.append(Fault(file, "", f"has {count} rows for {shard.name}, the manifest {shard.samples} samples"))
    labels = index["label"].to_numpy()
    for row in np.flatnonzero((labels < 0) | (labels >= len(manifest.classes))):
        faults.append(
            Fault(file, index["key"][int(row)].as_py(), f"label {labels[row]} of {len(manifest.classes)} classes")
        )
    return faults + [Fault(file, key, "comes more than once") for key in repeated_keys(index)]


def _check_info(folder: Folder, manifests: list[Manifest]) -> list[Fault]:
    """Compare `_info.json` with the manifests."""
    from sharding.scan import Fault

    try:
        splits = json.loads(folder.read("_info.json"))["splits"].values()
        described = {tuple(split["filenames"]): split["shard_lengths"] for split in splits}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return [Fault("_info.json", "", f"is missing or damaged ({error!r})")]
    return [
        Fault("_info.json", "", f"does not describe {manifest.stem} as its manifest does")
        for manifest in manifests
        if described.get(tuple(shard.name for shard in manifest.shards)) != [shard.samples for shard in manifest.shards]
    ]


def summarise(faults: list[Fault]) -> Iterator[str]:
    """Format one line per fault; of a shard's missing or unexpected samples, list the first and count the others."""
    from sharding.scan import MISSING, UNEXPECTED

    for file, group in itertools.groupby(faults, key=lambda fault: fault.file):
        counts: Counter[str] = Counter()
        for fault in group:
            counts[fault.what] += fault.what in (MISSING, UNEXPECTED)
            if counts[fault.what] <= _LISTED_SAMPLES:
                yield str(fault)
        for what, count in counts.items():
            if count > _LISTED_SAMPLES:
                yield f"{file}: and {count - _LISTED_SAMPLES:,} more samples of this shard: {what}"


def _run(options: VerifyOptions) -> int:
    faults = verify(options, log=print_line, own_process=True)
    for line in summarise(faults):
        print_line(line)
    if not faults:
        print_line("no faults: the shards match their manifests")
        return 0
    print_line(
        f"{len(faults):,} faults. All other shards and samples are sound. Remove the shards listed and give the build "
        "command again, which writes only what is missing; or, if other software packed them, fetch them again."
    )
    return 1


def main() -> int:
    """Run the command and return the exit code."""
    return run_command(
        "python -m sharding.verify",
        VerifyOptions,
        _run,
        describe_place=lambda options: options.shards,
        after_interrupt="nothing was changed",
    )


if __name__ == "__main__":
    raise SystemExit(main())
