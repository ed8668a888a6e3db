"""Read a shard from its first byte to its last: its SHA-256, its samples and its faults."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa
import xxhash

from sharding.errors import ImageError, ManifestError, SourceError
from sharding.images import MAX_IMAGE_BYTES, ImagePolicy, pack_image
from sharding.isolation import isolated
from sharding.manifest import INDEX_SCHEMA, MAX_CLASSES, OddImage
from sharding.pool import note_place
from sharding.storage import Folder
from sharding.tarfiles import Member, iter_members

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
# Faults that all samples of a truncated or exchanged shard may share.
MISSING = "is missing from the shard"
UNEXPECTED = "is not in the index"
_CHUNK = 4 << 20


@dataclass(frozen=True)
class Fault:
    """A fault of a shard or of a file beside the shards.

    Attributes:
        file: name of the file.
        key: key of the sample; empty where the fault concerns the file as a whole.
        what: description of the fault.
    """

    file: str
    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.what}" if self.key else f"{self.file}: {self.what}"


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The content of a shard.

    Attributes:
        name: file name of the tar.
        bytes: size of the tar.
        sha256: SHA-256 of the tar in hex.
        rows: one dict per readable sample, with the columns of the index except `shard`.
        classes: class id by label, from the JSON of the samples; empty where the JSON names none.
        odd: unusual images, which a training reads all the same, in the order of the tar.
        faults: the faults, in the order of the tar.
    """

    name: str
    bytes: int
    sha256: str
    rows: list[dict[str, Any]]
    classes: dict[int, str]
    odd: list[OddImage]
    faults: list[Fault]

    def table(self, shard: int) -> pa.Table:
        """The rows as a part of the index, with the position of the shard."""
        return pa.Table.from_pylist([{**row, "shard": shard} for row in self.rows], INDEX_SCHEMA)


@dataclass
class _Sample:
    key: str
    image: Member | None = None
    data: bytes = b""
    fields: dict[str, bytes] = field(default_factory=dict)


class _Stream:
    """Reads a shard forward by position and computes the SHA-256 of all bytes that it has read."""

    def __init__(self, stream: Any, folder: Folder, name: str) -> None:
        self.stream, self.position, self.sha256 = stream, 0, hashlib.sha256()
        self.folder, self.name = folder, name

    def read_at(self, offset: int, size: int) -> bytes:
        """Read `size` bytes at `offset`; open the shard once more if they lie before bytes already read."""
        if offset < self.position:
            with self.folder.open_input(self.name) as opened:
                opened.seek(offset)
                return opened.read(size)
        while self.position < offset and self._take(min(_CHUNK, offset - self.position)):
            pass
        return self._take(size)

    def finish(self) -> None:
        """Read the rest of the stream."""
        while self._take(_CHUNK):
            pass

    def _take(self, size: int) -> bytes:
        data = self.stream.read(size)
        while len(data) < size and (more := self.stream.read(size - len(data))):
            data += more
        self.position += len(data)
        self.sha256.update(data)
        return data


def scan_shard(folder: Folder, name: str, *, decode_check: bool, in_isolation: bool = False) -> Scan:
    """Read one shard.

    Args:
        folder: folder of the shards.
        name: file name of the tar.
        decode_check: whether to decode every image.
        in_isolation: whether each image is decoded in a process of its own, because a worker crashed in this shard.

    Raises:
        OSError: the file cannot be read at all.
    """
    size = folder.size(name) or 0
    policy = ImagePolicy(decode_check=decode_check)
    make_row = isolated(_row) if in_isolation else _row
    rows, faults, odd, classes = [], [], [], {}
    keys: set[str] = set()
    with folder.open_stream(name) as opened:
        stream = _Stream(opened, folder, name)
        try:
            for sample in _iter_samples(stream, size, name):
                if sample.key in keys:
                    faults.append(Fault(name, "", f"the key {sample.key!r} comes more than once"))
                    continue
                keys.add(sample.key)
                note_place(sample.image.offset if sample.image else -1)
                try:
                    row, wnid, oddity = make_row(sample, policy)
                except (ImageError, SourceError) as error:
                    faults.append(Fault(name, sample.key, str(error)))
                else:
                    rows.append(row)
                    if oddity is not None:
                        odd.append(OddImage(sample.key, name, oddity, "kept"))
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
        odd=odd,
        faults=faults,
    )


def _iter_samples(stream: _Stream, size: int, name: str) -> Iterator[_Sample]:
    """Group the members into samples as WebDataset does: neighbours whose names agree up to the first dot.

    Raises:
        SourceError: the archive is truncated or no tar; raised after the samples before that place.
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
        if not stem or not dot:  # WebDataset skips names such as README and `._x.jpg` (of macOS) too
            continue
        if member.size > MAX_IMAGE_BYTES:
            raise SourceError(f"{name} holds {member.name} of {member.size:,} bytes; {MAX_IMAGE_BYTES:,} are allowed")
        key = f"{folder}/{stem}" if folder else stem
        # A repeated field begins another sample with the same key.
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


def _row(sample: _Sample, policy: ImagePolicy) -> tuple[dict[str, Any], str | None, str | None]:
    """Make the index row of a sample.

    Returns:
        The row without `shard`; the class id from the sample's JSON, if it has one; and what is unusual about the
        image, if anything is.

    Raises:
        SourceError: the image or the label is missing or contradicts another field.
        ImageError: the image is damaged or too large, or no decoder of the trainer reads it.
    """
    if sample.image is None:
        raise SourceError(f"no image among its fields ({', '.join(sample.fields)})")
    try:
        description = json.loads(sample.fields["json"]) if "json" in sample.fields else {}
        label = int(sample.fields["cls"]) if "cls" in sample.fields else operator.index(description["label"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SourceError(f"no label: neither KEY.cls nor `label` in KEY.json is a whole number ({error!r})") from error
    if not isinstance(description, dict):
        raise SourceError("KEY.json is no object")
    if not 0 <= label < MAX_CLASSES:
        raise SourceError(f"label {label} is not from 0 to {MAX_CLASSES - 1:,}")
    if description.get("label", label) != label:
        raise SourceError(f"KEY.cls says label {label}, KEY.json {description['label']}")
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
    wnid = description.get("class")
    return row, wnid if isinstance(wnid, str) else None, packed.oddity


@dataclass(frozen=True)
class ScanJob:
    """A shard to scan.

    Attributes:
        folder: folder of the shards.
        name: file name of the tar.
        decode_check: whether to decode every image.
        isolated: whether each image is decoded in a process of its own, because a worker crashed in this shard.
    """

    folder: Folder
    name: str
    decode_check: bool
    isolated: bool = False

    def isolate(self) -> Self | None:
        """The same job with each image in a process of its own; None if it is so already."""
        return None if self.isolated else dataclasses.replace(self, isolated=True)

    def describe(self, place: int) -> str:
        """Describe the image that a worker had begun; `place` is its position in the file in bytes, -1 if unknown."""
        return describe_place(self.name, place)


def describe_place(name: str, place: int) -> str:
    """Describe an image by the shard that it is in and its position there in bytes, -1 if unknown."""
    return name if place < 0 else f"the image at byte {place:,} of {name}"


def scan_for_index(job: ScanJob) -> tuple[Scan, pa.Table]:
    """Scan one shard in a worker process.

    Returns:
        The scan without its rows, and the rows as a table, which is faster to send; its column `shard` is 0.

    Raises:
        ManifestError: the file cannot be read.
    """
    try:
        scan = scan_shard(job.folder, job.name, decode_check=job.decode_check, in_isolation=job.isolated)
    except OSError as error:
        raise ManifestError(f"{job.folder.location}/{job.name} cannot be read: {error}") from error
    return dataclasses.replace(scan, rows=[]), scan.table(0)
