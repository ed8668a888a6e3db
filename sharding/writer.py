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

from sharding.errors import ImageError, OutputError, SourceError
from sharding.images import ImagePolicy, PackedImage, one_thread, pack_image
from sharding.manifest import INDEX_SCHEMA, OddImage, ShardInfo
from sharding.parts import Part
from sharding.sources.images import iter_images
from sharding.sources.listing import Listing
from sharding.storage import Folder, Sink
from sharding.tarfiles import BLOCK, END, header, padding
from sharding.unfinished import SETTINGS

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
        manifest: name of the manifest that will be.
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
    manifest: str
    samples: Listing
    wnids: Sequence[str]
    policy: ImagePolicy
    skip_bad: bool


def pack_shard(job: ShardJob) -> tuple[Part | None, bool]:
    """Write one shard, or find it finished.

    Returns:
        What was written, and whether it was there already: same plan, and the tar has its digest. None, and True, if
        another build has published all meanwhile.

    Raises:
        SourceError: the source cannot be read, or images in it are unreadable and may not be skipped.
        OutputError: the shard cannot be written.
    """
    try:
        if _is_published(job):
            return None, True
        finished = _finished(job)
        return (finished, True) if finished is not None else (_write(job), False)
    except (OutputError, FileNotFoundError):
        if not _is_published(job):  # and with it has removed the folder this one was writing to
            raise
        return None, True


def _is_published(job: ShardJob) -> bool:
    """Whether the manifest is there and the records are gone; a shard that is written again has both."""
    return job.parts.size(SETTINGS) is None and job.output.size(job.manifest) is not None


def _write(job: ShardJob) -> Part:
    odd: list[OddImage] = []
    bad: list[str] = []
    with job.output.publish(job.file_name, aside=job.parts) as sink:
        tar = _ShardStream(job, sink)
        for index, packed in _iter_packed(job, odd, bad):
            if not bad:  # else the shard is lost; look through the rest of it so that all bad images are named
                tar.append(index, packed)
        if bad:
            raise SourceError(_name_bad(bad))
        tar.finish()
    shard = ShardInfo(job.file_name, len(tar.rows), tar.position, tar.sha256.hexdigest())
    part = Part(number=job.number, plan=job.plan, shard=shard, odd=tuple(odd), rows=_index_rows(tar.rows, job.number))
    job.parts.write(Part.file_name(job.number), part.to_bytes(), durable=False)
    return part


class _ShardStream:
    """A tar on its way to the disk: some MB of samples are collected, and then described, hashed and written together.

    One by one would be slower: decoding the next image throws everything else out of the processor's caches.
    """

    def __init__(self, job: ShardJob, sink: Sink) -> None:
        self.sink, self.sha256, self.position = sink, hashlib.sha256(), 0
        self.rows: list[IndexRow] = []
        self.keys, self.names = job.samples.keys.to_pylist(), job.samples.names.to_pylist()
        self.labels, self.wnids = job.samples.labels.tolist(), job.wnids
        self._waiting: list[tuple[int, PackedImage]] = []
        self._waiting_bytes = 0

    def append(self, index: int, packed: PackedImage) -> None:
        self._waiting.append((index, packed))
        self._waiting_bytes += len(packed.data)
        if self._waiting_bytes >= _FLUSH_BYTES:
            self._flush()

    def finish(self) -> None:
        self._flush()
        self._write([END])

    def _flush(self) -> None:
        pieces: list[bytes] = []
        position = self.position
        for index, packed in self._waiting:
            key, label, data = self.keys[index], self.labels[index], packed.data
            tail = _tail(key, label, self.wnids[index], self.names[index], packed)
            digest = xxhash.xxh64_intdigest(data)
            self.rows.append((key, label, position + BLOCK, len(data), packed.width, packed.height, digest))
            pieces += (header(key.encode() + b".jpg", len(data)), data, tail)
            position += BLOCK + len(data) + len(tail)
        self._write(pieces)
        self._waiting, self._waiting_bytes = [], 0

    def _write(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self.sha256.update(piece)
        self.sink.write_all(pieces)
        self.position += sum(map(len, pieces))


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


def _tail(key: str, label: int, wnid: str, name: str, packed: PackedImage) -> bytes:
    """What follows the bytes of an image in the tar, up to the end of KEY.json."""
    prefix, size = key.encode(), len(packed.data)
    cls = b"%d" % label
    description = (
        f'{{"key": {_quote(key)}, "label": {label}, "class": {_quote(wnid)}, '
        f'"filename": {_quote(name.rpartition("/")[2])}, "width": {packed.width}, "height": {packed.height}}}'
    ).encode()
    pieces = (
        padding(size),
        header(prefix + b".cls", len(cls)),
        cls,
        padding(len(cls)),
        header(prefix + b".json", len(description)),
        description,
        padding(len(description)),
    )
    return b"".join(pieces)


def _index_rows(rows: list[IndexRow], shard: int) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * 7
    key, label, offset, size, width, height, xxh64 = columns
    arrays = (key, label, [shard] * len(rows), offset, size, width, height, xxh64)
    return pa.table(
        [pa.array(values, field.type) for values, field in zip(arrays, INDEX_SCHEMA, strict=True)], INDEX_SCHEMA
    )


def _name_bad(bad: list[str]) -> str:
    listed = "\n  ".join(bad)
    return (
        f"{len(bad)} unreadable image{'s' * (len(bad) > 1)}:\n  {listed}\nLeave them out with --on-bad skip; or "
        "replace them, and pack into another --output, since the source is then another one."
    )


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
