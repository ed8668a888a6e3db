"""Proves that shards are what their manifest says: `python -m sharding.verify --shards U`.

Every shard is read once: its SHA-256, its samples, their labels and the bytes, size and soundness of every image are
compared with the manifest and the index. Faults are named by shard and key; the exit code is 1 if there are any.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharding.command import ShardsOptions, run_command, say_line

if TYPE_CHECKING:
    import pyarrow as pa

    from sharding.manifest import Manifest
    from sharding.scan import Fault
    from sharding.storage import Folder

_NAMED_SAMPLES = 5  # of those that a shard has lost


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(ShardsOptions):
    """Re-hash, recount and decode shards, and compare them with their manifest and index."""


def verify(options: VerifyOptions, *, say: Callable[[str], None] = lambda line: None) -> list[Fault]:
    """Verify all splits that the options name.

    Args:
        options: what to verify.
        say: takes lines for the user.

    Returns:
        All faults; empty when everything is as the manifests say.

    Raises:
        ManifestError: there is no manifest, or it or the index is damaged.
    """
    from sharding.errors import ManifestError
    from sharding.manifest import find_manifests, load_manifest
    from sharding.storage import Folder

    folder = Folder.open(options.shards)
    manifests = [
        manifest
        for (name, split), manifest in sorted(find_manifests(folder).items())
        if options.name in (None, name) and options.split in (None, split)
    ]
    if not manifests:
        load_manifest(options.shards, options.split or "train", options.name)  # says what is missing
        raise ManifestError(f"no manifest in {options.shards!r} fits --name {options.name} --split {options.split}")
    faults = _check_info(folder, manifests)
    for manifest in manifests:
        found = _verify_split(folder, manifest, options)
        say(f"{manifest.stem}: {manifest.num_samples:,} images in {len(manifest.shards)} shards, {len(found)} faults")
        faults += found
    return faults


def _verify_split(folder: Folder, manifest: Manifest, options: VerifyOptions) -> list[Fault]:
    import pyarrow.compute as pc

    from sharding.checks import ShardCheck, check_shard
    from sharding.imagenet import audit, is_imagenet
    from sharding.manifest import load_index, shards_of
    from sharding.pool import available_cpus, run_jobs
    from sharding.progress import Progress
    from sharding.scan import Fault

    index = load_index(options.shards, manifest)
    faults = _check_index(manifest, index)
    listed = {shard.name for shard in manifest.shards}
    faults += [
        Fault(file, "", "is not in the manifest") for file in shards_of(folder, manifest.stem) if file not in listed
    ]
    checks = (
        # A filter copies the rows; a slice would travel to the worker with the whole index behind it.
        ShardCheck(folder, manifest, number, index.filter(pc.field("shard") == number), options.decode_check)
        for number in range(len(manifest.shards))
    )
    workers = max(1, min(options.workers or available_cpus(), len(manifest.shards)))
    with Progress(f"verify {manifest.stem}", manifest.num_samples) as progress:
        for number, found in run_jobs(check_shard, checks, workers):
            faults += found
            progress.add(manifest.shards[number].samples, manifest.shards[number].bytes, written=True)
    if manifest.settings.get("whole_imagenet") and is_imagenet(manifest.classes, manifest.split):
        labels = index["label"].to_numpy()
        faults += [Fault(f"{manifest.stem}.json", "", text) for text in audit(manifest.split, labels, manifest.classes)]
    return sorted(faults, key=lambda fault: (fault.file, fault.key, fault.what))


def _check_index(manifest: Manifest, index: pa.Table) -> list[Fault]:
    """What the index says against the manifest; both have kept their digests, so this is about who wrote them."""
    import numpy as np

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
    keys, repeats = np.unique(index["key"].to_numpy(zero_copy_only=False), return_counts=True)
    faults += [Fault(file, key, "comes more than once") for key in keys[repeats > 1]]
    return faults


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
    """One line a fault; of samples a shard has lost, or should not have, the first are named and the others counted."""
    from sharding.scan import MISSING, UNEXPECTED

    for file, group in itertools.groupby(faults, key=lambda fault: fault.file):
        counts: Counter[str] = Counter()
        for fault in group:
            counts[fault.what] += fault.what in (MISSING, UNEXPECTED)
            if counts[fault.what] <= _NAMED_SAMPLES:
                yield str(fault)
        for what, count in counts.items():
            if count > _NAMED_SAMPLES:
                yield f"{file}: and {count - _NAMED_SAMPLES:,} more samples of this shard: {what}"


def _verify_and_say(options: VerifyOptions) -> int:
    faults = verify(options, say=say_line)
    for line in summarise(faults):
        print(line)
    if not faults:
        print("everything is as the manifest says")
        return 0
    print(
        f"{len(faults):,} faults. What is not named is sound. Remove the shards named and give their build command "
        "again, which writes only what is missing; or, if others packed them, fetch them again."
    )
    return 1


def main() -> int:
    """Run the command; gives the exit code."""
    return run_command(
        "python -m sharding.verify",
        VerifyOptions,
        _verify_and_say,
        places=lambda options: options.shards,
        ended="nothing was changed",
    )


if __name__ == "__main__":
    raise SystemExit(main())
