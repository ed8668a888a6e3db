"""Reads a shard from its first byte to its last: digest, samples, and everything that is wrong with it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import xxhash

from sharding.errors import ImageError, ManifestError, SourceError
from sharding.images import MAX_IMAGE_BYTES, ImagePolicy, pack_image
from sharding.manifest import INDEX_SCHEMA, MAX_CLASSES
from sharding.storage import Folder
from sharding.tarfiles import Member, iter_members

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
# What is wrong with every sample of a shard that ends too early, or that is another one.
MISSING = "is missing from the shard"
UNEXPECTED = "is not in the index"
_CHUNK = 4 << 20


@dataclass(frozen=True)
class Fault:
    """Something wrong: in which file, with which sample (empty: the file as a whole), and what."""

    file: str
    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.what}" if self.key else f"{self.file}: {self.what}"


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a shard holds.

    Attributes:
        name: file name of the tar.
        bytes: its size.
        sha256: of the file, in hex.
        rows: one dict a readable sample with the columns of the index except `shard`.
        classes: what the samples' JSON says of its class, by label; empty where it says nothing.
        faults: what is wrong.
        unreadable: keys of samples whose image is damaged.
    """

    name: str
    bytes: int
    sha256: str
    rows: list[dict[str, Any]]
    classes: dict[int, str]
    faults: list[Fault]
    unreadable: list[str]

    def table(self, shard: int) -> pa.Table:
        """The rows as a part of the index."""
        return pa.Table.from_pylist([{**row, "shard": shard} for row in self.rows], INDEX_SCHEMA)


@dataclass
class _Sample:
    key: str
    image: Member | None = None
    data: bytes = b""
    fields: dict[str, bytes] = field(default_factory=dict)


class _Stream:
    """Forward reads by position over a stream, with the SHA-256 of all that has passed."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.position, self.sha256 = stream, 0, hashlib.sha256()

    def read_at(self, offset: int, size: int) -> bytes:
        """Bytes at `offset`, which is never before what was read."""
        while self.position < offset and self._take(min(_CHUNK, offset - self.position)):
            pass
        return self._take(size)

    def finish(self) -> None:
        """Read to the end."""
        while self._take(_CHUNK):
            pass

    def _take(self, size: int) -> bytes:
        data = self.stream.read(size)
        while len(data) < size and (more := self.stream.read(size - len(data))):
            data += more
        self.position += len(data)
        self.sha256.update(data)
        return data


def scan_shard(folder: Folder, name: str, *, decode_check: bool) -> Scan:
    """Read one shard.

    Args:
        folder: of the shards.
        name: of the tar.
        decode_check: decode every image.

    Raises:
        OSError: the file cannot be read at all.
    """
    size = folder.size(name) or 0
    policy = ImagePolicy(decode_check=decode_check)
    rows, faults, unreadable, classes = [], [], [], {}
    keys: set[str] = set()
    with folder.open_stream(name) as opened:
        stream = _Stream(opened)
        try:
            for sample in _iter_samples(stream, size, name):
                if sample.key in keys:
                    faults.append(Fault(name, "", f"the key {sample.key!r} comes more than once"))
                    continue
                keys.add(sample.key)
                try:
                    row, wnid = _row(sample, policy)
                except ImageError as error:
                    unreadable.append(sample.key)
                    faults.append(Fault(name, sample.key, str(error)))
                except SourceError as error:
                    faults.append(Fault(name, sample.key, str(error)))
                else:
                    rows.append(row)
                    if wnid:
                        classes[row["label"]] = wnid
        except SourceError as error:
            faults.append(Fault(name, "", str(error).removeprefix(f"{name} ")))
        stream.finish()
    return Scan(
        name=name,
        bytes=stream.position,
        sha256=stream.sha256.hexdigest(),
        rows=rows,
        classes=classes,
        faults=faults,
        unreadable=unreadable,
    )


def _iter_samples(stream: _Stream, size: int, name: str) -> Iterator[_Sample]:
    """Members with one key, as WebDataset groups them: neighbours that agree up to the first dot of the file name.

    Raises:
        SourceError: the archive ends too early or is none, after the samples before that place.
    """
    sample: _Sample | None = None
    end: SourceError | None = None
    members = iter_members(stream.read_at, 0, size, name)
    while True:
        try:
            member = next(members, None)
        except SourceError as error:
            member, end = None, error
        if member is None:
            break
        folder, _, file = member.name.rpartition("/")
        stem, dot, extension = file.partition(".")
        if not stem or not dot:  # `._x.jpg` of macOS, README: no samples for WebDataset either
            continue
        if member.size > MAX_IMAGE_BYTES:
            raise SourceError(f"{name} holds {member.name} of {member.size:,} bytes; {MAX_IMAGE_BYTES:,} are allowed")
        key = f"{folder}/{stem}" if folder else stem
        # A field that comes again begins another sample of the same key.
        if sample is None or sample.key != key or extension.lower() in sample.fields:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        data = stream.read_at(member.offset, member.size)
        if extension.lower() in IMAGE_EXTENSIONS:
            sample.image, sample.data = member, data
        sample.fields[extension.lower()] = data
    if sample is not None:
        yield sample
    if end is not None:
        raise end


def _row(sample: _Sample, policy: ImagePolicy) -> tuple[dict[str, Any], str | None]:
    """The index row of a sample and the class its JSON names.

    Raises:
        SourceError: image or label is missing or contradicts the other fields.
        ImageError: the image is damaged.
    """
    if sample.image is None:
        raise SourceError(f"no image among its fields ({', '.join(sample.fields)})")
    try:
        facts = json.loads(sample.fields["json"]) if "json" in sample.fields else {}
        label = int(sample.fields["cls"]) if "cls" in sample.fields else operator.index(facts["label"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(f"no label: neither KEY.cls nor `label` in KEY.json is a whole number ({error!r})") from error
    if not isinstance(facts, dict):
        raise SourceError("KEY.json is no object")
    if not 0 <= label < MAX_CLASSES:
        raise SourceError(f"label {label} is not from 0 to {MAX_CLASSES - 1:,}")
    if facts.get("label", label) != label:
        raise SourceError(f"KEY.cls says label {label}, KEY.json {facts['label']}")
    packed = pack_image(sample.data, policy)
    row = {
        "key": sample.key,
        "label": label,
        "offset": sample.image.offset,
        "size": sample.image.size,
        "width": packed.width,
        "height": packed.height,
        "xxh64": xxhash.xxh64_intdigest(sample.data),
    }
    wnid = facts.get("class")
    return row, wnid if isinstance(wnid, str) else None


@dataclass(frozen=True)
class ScanJob:
    """A shard to scan: its folder, its name, and whether to decode every image."""

    folder: Folder
    name: str
    decode_check: bool


def scan_for_index(job: ScanJob) -> tuple[Scan, pa.Table]:
    """Scan one shard in a worker; its rows travel as a table, `shard` 0.

    Raises:
        ManifestError: the file cannot be read.
    """
    try:
        scan = scan_shard(job.folder, job.name, decode_check=job.decode_check)
    except OSError as error:
        raise ManifestError(f"{job.folder.location}/{job.name} cannot be read: {error}") from error
    return dataclasses.replace(scan, rows=[]), scan.table(0)
