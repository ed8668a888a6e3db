"""One shard against its manifest and index."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from sharding.manifest import Manifest
from sharding.scan import MISSING, UNEXPECTED, Fault, scan_shard
from sharding.storage import Folder


@dataclass(frozen=True)
class ShardCheck:
    """What one shard should be.

    Attributes:
        folder: of the shards.
        manifest: of the split.
        number: of the shard in the manifest.
        rows: its part of the index.
        decode_check: decode every image.
    """

    folder: Folder
    manifest: Manifest
    number: int
    rows: pa.Table
    decode_check: bool


def check_shard(check: ShardCheck) -> tuple[int, list[Fault]]:
    """Compare a shard with what it should be; gives its number and the faults."""
    shard, name = check.manifest.shards[check.number], check.manifest.shards[check.number].name
    try:
        scan = scan_shard(check.folder, name, decode_check=check.decode_check)
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        return check.number, [Fault(name, "", reason)]
    # Samples that the manifest itself lists as left out are in tars packed by others.
    skipped = {entry.key for entry in check.manifest.odd if entry.action == "skipped"}
    faults = [fault for fault in scan.faults if fault.key not in skipped]
    if scan.bytes != shard.bytes:
        faults.append(Fault(name, "", f"has {scan.bytes:,} bytes, the manifest says {shard.bytes:,}"))
    elif scan.sha256 != shard.sha256:
        faults.append(Fault(name, "", "its SHA-256 is not the manifest's"))
    expected = {row.pop("key"): row for row in check.rows.drop_columns(["shard"]).to_pylist()}
    found = {row["key"]: row for row in scan.rows if row["key"] not in skipped}
    named = {fault.key for fault in faults}
    for key, row in found.items():
        if key not in expected:
            faults.append(Fault(name, key, UNEXPECTED))
            continue
        differing = [column for column, value in expected[key].items() if row[column] != value]
        if differing:
            said = ", ".join(f"{column} {row[column]} (index: {expected[key][column]})" for column in differing)
            faults.append(Fault(name, key, f"differs from the index: {said}"))
    faults += [Fault(name, key, MISSING) for key in expected if key not in found and key not in named]
    return check.number, faults
