"""Compare one shard with its manifest and its index."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Self

import pyarrow as pa

from sharding.class_agreement import disagreements
from sharding.label_maps import LabelMaps
from sharding.manifest import Manifest
from sharding.scan import MISSING, UNEXPECTED, Fault, describe_place, scan_shard
from sharding.storage import Folder


@dataclass(frozen=True)
class VerifyJob:
    """One shard to verify, and its expected content.

    Attributes:
        folder: folder of the shards.
        manifest: manifest of the split.
        number: position of the shard in the manifest.
        rows: rows of the index that belong to the shard.
        decode_check: whether to decode every image.
        isolated: whether each image is decoded in a process of its own, because a worker crashed in this shard.
    """

    folder: Folder
    manifest: Manifest
    number: int
    rows: pa.Table
    decode_check: bool
    isolated: bool = False

    def isolate(self) -> Self | None:
        """The same job with each image in a process of its own; None if it is so already."""
        return None if self.isolated else dataclasses.replace(self, isolated=True)

    def describe(self, place: int) -> str:
        """Describe the image that a worker had begun; `place` is its position in the file in bytes, -1 if unknown."""
        return describe_place(self.manifest.shards[self.number].name, place)


def _label_maps(manifest: Manifest) -> LabelMaps | None:
    if manifest.ignore_index is None:
        return None
    return LabelMaps(manifest.class_values, manifest.ignore_index, manifest.ignored_values)


def verify_shard(job: VerifyJob) -> tuple[int, list[Fault]]:
    """Read a shard and compare it with its expected content.

    Returns:
        The position of the shard in the manifest, and its faults.
    """
    shard, name = job.manifest.shards[job.number], job.manifest.shards[job.number].name
    try:
        image_member = job.manifest.settings.get("image_member")
        scan = scan_shard(
            job.folder,
            name,
            decode_check=job.decode_check,
            image_member=image_member,
            in_isolation=job.isolated,
            label_maps=_label_maps(job.manifest),
            object_classes=len(job.manifest.classes) if job.manifest.task == "detection" else None,
        )
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        return job.number, [Fault(name, "", reason)]
    # A manifest made by `sharding.index` lists damaged samples that its tars still hold.
    skipped = {entry.key for entry in job.manifest.odd if entry.action == "skipped"}
    faults = [fault for fault in scan.faults if fault.key not in skipped]
    if scan.bytes != shard.bytes:
        faults.append(Fault(name, "", f"has {scan.bytes:,} bytes, the manifest says {shard.bytes:,}"))
    elif scan.sha256 != shard.sha256:
        faults.append(Fault(name, "", "its SHA-256 is not the manifest's"))
    expected = {row.pop("key"): row for row in job.rows.drop_columns(["shard"]).to_pylist()}
    found = {row["key"]: row for row in scan.rows if row["key"] not in skipped}
    faults += [
        Fault(name, where.removeprefix(f"{name}: "), what)
        for where, what in disagreements(scan.evidence, job.manifest.classes)
    ]
    named = {fault.key for fault in faults}
    for key, row in found.items():
        if key not in expected:
            faults.append(Fault(name, key, UNEXPECTED))
            continue
        differing = [column for column, value in expected[key].items() if row[column] != value]
        if differing:
            values = ", ".join(f"{column} {row[column]} (index: {expected[key][column]})" for column in differing)
            faults.append(Fault(name, key, f"differs from the index: {values}"))
    faults += [Fault(name, key, MISSING) for key in expected if key not in found and key not in named]
    return job.number, faults
