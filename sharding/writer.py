"""Writes one shard: an independent unit of work that any process can do, with the same bytes as the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from sharding.errors import ImageError, SourceError
from sharding.images import ImagePolicy, PackedImage, one_thread, pack_image
from sharding.manifest import INDEX_SCHEMA, OddImage, ShardInfo
from sharding.parts import Part
from sharding.sources.images import iter_images
from sharding.sources.listing import Listing
from sharding.storage import Folder, Sink
from sharding.tarfiles import BLOCK, END, header, padding

_FLUSH_BYTES = 4 << 20
_quote = json.encoder.encode_basestring_ascii

IndexRow = tuple[str, int, int, int, int, int, int]  # key, label, offset, size, width, height, xxh64


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
    samples = job.samples
    keys, names, labels = samples.keys.to_pylist(), samples.names.to_pylist(), samples.labels.tolist()
    rows: list[IndexRow] = []
    odd: list[OddImage] = []
    bad: list[str] = []
    with job.output.publish(job.file_name, aside=job.parts) as sink:
        tar = _TarStream(sink)
        for index, packed in _iter_packed(job, odd, bad):
            if bad:
                continue  # the shard is lost; look through the rest of it so that all bad images are named
            key, label, data = keys[index], labels[index], packed.data
            digest = xxhash.xxh64_intdigest(data)
            rows.append((key, label, tar.position + BLOCK, len(data), packed.width, packed.height, digest))
            tar.append(*_members(key, label, job.wnids[index], names[index], packed))
        if bad:
            raise SourceError(_name_bad(bad))
        tar.finish()
    shard = ShardInfo(job.file_name, len(rows), tar.position, tar.sha256.hexdigest())
    part = Part(number=job.number, plan=job.plan, shard=shard, odd=tuple(odd), rows=_index_rows(rows, job.number))
    job.parts.write(Part.file_name(job.number), part.to_bytes(), durable=False)
    return part, False


class _TarStream:
    """Bytes on their way into a tar, hashed as they pass and written some MB at a time."""

    def __init__(self, sink: Sink) -> None:
        self.sink, self.sha256 = sink, hashlib.sha256()
        self.position = self._written = 0
        self._pieces: list[bytes] = []

    def append(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.sha256.update(piece)
            self.position += len(piece)
        self._pieces += pieces
        if self.position - self._written >= _FLUSH_BYTES:
            self._flush()

    def finish(self) -> None:
        self.append(END)
        self._flush()

    def _flush(self) -> None:
        self.sink.write_all(self._pieces)
        self._written, self._pieces = self.position, []


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

    def note(index: int, reason: str, action: str) -> None:
        odd.append(OddImage(job.samples.keys[index].as_py(), job.samples.describe(index), reason, action))

    with one_thread(job.policy):
        for index, data in iter_images(job.source, job.samples):
            try:
                packed = pack_image(data, job.policy)
            except ImageError as error:
                if job.skip_bad:
                    note(index, str(error), "skipped")
                else:
                    bad.append(f"{job.samples.describe(index)}: {error}")
                continue
            if packed.oddity is not None:
                note(index, packed.oddity, "converted")
            yield index, packed


def _members(key: str, label: int, wnid: str, name: str, packed: PackedImage) -> tuple[bytes, bytes, bytes]:
    """What goes into the tar for one sample: KEY.jpg's header, the image, and the rest up to the end of KEY.json."""
    prefix, size = key.encode(), len(packed.data)
    cls = b"%d" % label
    description = (
        f'{{"key": {_quote(key)}, "label": {label}, "class": {_quote(wnid)}, '
        f'"filename": {_quote(name.rpartition("/")[2])}, "width": {packed.width}, "height": {packed.height}}}'
    ).encode()
    tail = (
        padding(size),
        header(prefix + b".cls", len(cls)),
        cls,
        padding(len(cls)),
        header(prefix + b".json", len(description)),
        description,
        padding(len(description)),
    )
    return header(prefix + b".jpg", size), packed.data, b"".join(tail)


def _index_rows(rows: list[IndexRow], shard: int) -> pa.Table:
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
