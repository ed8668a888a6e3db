"""Writes one shard: an independent unit of work that any process can do, with the same bytes as the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray

from sharding.errors import ImageError, OutputError, SourceError
from sharding.images import ImagePolicy, PackedImage, pack_image
from sharding.manifest import INDEX_SCHEMA, OddImage, ShardInfo
from sharding.sources.images import iter_images
from sharding.sources.listing import Listing
from sharding.storage import Folder
from sharding.tarfiles import BLOCK, END, header, padding

_FLUSH_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """All that is needed to write one shard, small enough to send to another process.

    Attributes:
        number: position of the shard in the plan.
        file_name: of the tar.
        plan: digest of the plan it belongs to.
        source: folder of the images.
        output: folder of the shards.
        parts: folder for what is not yet published.
        samples: the images of this shard, in order.
        wnids: of each sample.
        policy: what happens to each image.
        skip_bad: leave unreadable images out instead of refusing the shard.
    """

    number: int
    file_name: str
    plan: str
    source: Folder
    output: Folder
    parts: Folder
    samples: Listing
    wnids: Sequence[str]
    policy: ImagePolicy
    skip_bad: bool


@dataclass(frozen=True, kw_only=True)
class Part:
    """A finished shard: what the manifest and the index will say of it.

    Attributes:
        number: position of the shard in the plan.
        plan: digest of the plan it belongs to.
        shard: name, counts and digest.
        odd: images converted or skipped.
        rows: index rows, `shard` column set to `number`.
    """

    number: int
    plan: str
    shard: ShardInfo
    odd: tuple[OddImage, ...]
    rows: pa.Table

    @staticmethod
    def file_name(number: int) -> str:
        """Name of the file that records a finished shard."""
        return f"{number:06d}.part"

    def to_bytes(self) -> bytes:
        """The record as a file: the rows in parquet, the rest in its metadata."""
        record = {"plan": self.plan, "shard": asdict(self.shard), "odd": [asdict(entry) for entry in self.odd]}
        sink = pa.BufferOutputStream()
        pq.write_table(self.rows.replace_schema_metadata({"part": json.dumps(record)}), sink)
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, number: int, content: bytes) -> Part | None:
        """Read a record; None where it is not whole."""
        try:
            rows = pq.read_table(pa.BufferReader(content))
            record = json.loads((rows.schema.metadata or {})[b"part"])
            return cls(
                number=number,
                plan=record["plan"],
                shard=ShardInfo(**record["shard"]),
                odd=tuple(OddImage(**entry) for entry in record["odd"]),
                rows=rows.replace_schema_metadata(None),
            )
        except (pa.ArrowException, KeyError, ValueError, TypeError):
            return None


def pack_shard(job: ShardJob) -> tuple[Part, bool]:
    """Write one shard, or find it finished.

    Returns:
        What was written, and whether it was there already: same plan, and the tar has its digest.

    Raises:
        SourceError: the source cannot be read, or images in it are unreadable and may not be skipped.
        OutputError: the shard cannot be written.
    """
    finished = _finished(job)
    if finished is not None:
        return finished, True
    with job.output.publish(job.file_name, aside=job.parts) as sink:
        rows: list[tuple[str, int, int, int, int, int, int]] = []
        odd: list[OddImage] = []
        sha256 = hashlib.sha256()
        position, waiting, pieces = 0, 0, []
        bad: list[str] = []
        for index, packed in _iter_packed(job, odd, bad):
            if bad:
                continue  # the shard is lost; look through the rest of it so that all bad images are named
            key, label = job.samples.keys[index].as_py(), int(job.samples.labels[index])
            head, tail = _members(key, label, job.wnids[index], job.samples.names[index].as_py(), packed)
            rows.append(
                (
                    key,
                    label,
                    position + BLOCK,
                    len(packed.data),
                    packed.width,
                    packed.height,
                    xxhash.xxh64_intdigest(packed.data),
                )
            )
            pieces += (head, packed.data, tail)
            length = len(head) + len(packed.data) + len(tail)
            position += length
            waiting += length
            for piece in pieces[-3:]:
                sha256.update(piece)
            if waiting >= _FLUSH_BYTES:
                sink.write_all(pieces)
                waiting, pieces = 0, []
        if bad:
            raise SourceError(_name_bad(bad))
        sha256.update(END)
        sink.write_all([*pieces, END])
    shard = ShardInfo(job.file_name, len(rows), position + len(END), sha256.hexdigest())
    part = Part(number=job.number, plan=job.plan, shard=shard, odd=tuple(odd), rows=_index_rows(rows, job.number))
    job.parts.write(Part.file_name(job.number), part.to_bytes(), durable=False)
    return part, False


def _finished(job: ShardJob) -> Part | None:
    """The record of the shard if it is finished and its tar is what the record says."""
    name = Part.file_name(job.number)
    if job.parts.size(name) is None:
        return None
    part = Part.from_bytes(job.number, job.parts.read(name))
    if part is None or part.plan != job.plan or job.output.size(part.shard.name) != part.shard.bytes:
        return None
    bad = [f"{entry.file}: {entry.reason}" for entry in part.odd if entry.action == "skipped"]
    with job.output.open_input(part.shard.name) as stream:
        sha256 = hashlib.sha256()
        while chunk := stream.read(_FLUSH_BYTES):
            sha256.update(chunk)
    if sha256.hexdigest() != part.shard.sha256:
        return None
    if bad and not job.skip_bad:
        raise SourceError(_name_bad(bad))
    return part


def _iter_packed(job: ShardJob, odd: list[OddImage], bad: list[str]) -> Iterator[tuple[int, PackedImage]]:
    """The images of a shard in order, checked; notes odd ones in `odd` and those that may not be skipped in `bad`."""
    for index, data in iter_images(job.source, job.samples):
        key, where = job.samples.keys[index].as_py(), job.samples.describe(index)
        try:
            packed = pack_image(data, job.policy)
        except ImageError as error:
            if job.skip_bad:
                odd.append(OddImage(key, where, str(error), "skipped"))
            else:
                bad.append(f"{where}: {error}")
            continue
        if packed.oddity is not None:
            odd.append(OddImage(key, where, packed.oddity, "converted"))
        yield index, packed


def _members(key: str, label: int, wnid: str, name: str, packed: PackedImage) -> tuple[bytes, bytes]:
    """What stands before and after the image's bytes: KEY.jpg's header; KEY.cls and KEY.json."""
    prefix, size = key.encode(), len(packed.data)
    cls = b"%d" % label
    facts = {"key": key, "label": label, "class": wnid, "filename": name.rpartition("/")[2]}
    description = json.dumps({**facts, "width": packed.width, "height": packed.height}).encode()
    tail = (
        padding(size),
        header(prefix + b".cls", len(cls)),
        cls,
        padding(len(cls)),
        header(prefix + b".json", len(description)),
        description,
        padding(len(description)),
    )
    return header(prefix + b".jpg", size), b"".join(tail)


def _index_rows(rows: list[tuple[str, int, int, int, int, int, int]], shard: int) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * 7
    key, label, offset, size, width, height, xxh64 = columns
    arrays = (key, label, [shard] * len(rows), offset, size, width, height, xxh64)
    return pa.table(
        [pa.array(values, field.type) for values, field in zip(arrays, INDEX_SCHEMA, strict=True)], INDEX_SCHEMA
    )


def _name_bad(bad: list[str]) -> str:
    listed = "\n  ".join(bad)
    return f"{len(bad)} unreadable images:\n  {listed}\nReplace them, or leave them out with --on-bad skip."


def cut(listing: Listing, samples: NDArray[np.int64]) -> Listing:
    """The part of a listing that one shard needs."""
    files, file = np.unique(listing.file[samples], return_inverse=True)
    return Listing(
        source_format=listing.source_format,
        split=listing.split,
        classes=(),
        files=listing.files.take(pa.array(files)),
        file=file.astype(np.int32),
        names=listing.names.take(pa.array(samples)),
        keys=listing.keys.take(pa.array(samples)),
        labels=listing.labels[samples],
        offsets=listing.offsets[samples],
        sizes=listing.sizes[samples],
        blocks=None if listing.blocks is None else listing.blocks[samples],
    )


__all__ = ["OutputError", "Part", "ShardJob", "cut", "pack_shard"]
