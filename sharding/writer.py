"""Write one shard: an independent unit of work with the same bytes as the result in every process."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import pyarrow as pa
import xxhash

from sharding.coco import check_target
from sharding.errors import ImageError, OutputError, SourceError
from sharding.images import ImagePolicy, PackedImage, pack_image, resize_in_one_thread
from sharding.index_table import INDEX_SCHEMA
from sharding.isolation import isolated
from sharding.label_maps import LabelMaps
from sharding.manifest import OddImage, ShardInfo
from sharding.pool import note_place
from sharding.shard_record import ShardRecord
from sharding.sources.images import iter_images
from sharding.sources.listing import Listing
from sharding.storage import Folder, Sink
from sharding.tarfiles import BLOCK, END, header, padding
from sharding.work_folder import SETTINGS_FILE

_FLUSH_BYTES = 4 << 20
_quote = json.encoder.encode_basestring_ascii

# key, label, offset, size, width, height, xxh64, then offset, size and xxh64 of the target
IndexRow = tuple[str, int, int, int, int, int, int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """Everything needed to write one shard, small enough to send to another process.

    Attributes:
        number: position of the shard in the plan.
        file_name: file name of the tar.
        plan: digest of the plan that the shard belongs to.
        source: folder of the images.
        output: folder of the shards.
        work_folder: folder of the unfinished build, for temporary files and records.
        manifest: file name of the manifest that the build will publish.
        samples: the images of this shard, in order.
        wnids: class id of each sample.
        policy: how to check and convert each image.
        skip_bad: whether to leave unreadable images out instead of refusing the shard.
        label_maps: values of the label maps; None where a sample has a label alone.
        isolated: whether each image is decoded in a process of its own, because a worker crashed in this shard.
    """

    number: int
    file_name: str
    plan: str
    source: Folder
    output: Folder
    work_folder: Folder
    manifest: str
    samples: Listing
    wnids: Sequence[str]
    policy: ImagePolicy
    skip_bad: bool
    isolated: bool = False
    label_maps: LabelMaps | None = None

    def isolate(self) -> Self | None:
        """The same job with each image in a process of its own; None if it is so already."""
        return None if self.isolated else dataclasses.replace(self, isolated=True)

    def describe(self, place: int) -> str:
        """Describe the image that a worker had begun; `place` is its position in the shard, -1 before the first."""
        return self.file_name if place < 0 else self.samples.describe(place)


def pack_shard(job: ShardJob) -> tuple[ShardRecord | None, bool]:
    """Write one shard unless it is finished already.

    Returns:
        The record of the shard, and whether an earlier build had finished it (same plan, and the tar has the recorded
        SHA-256). None and True if another build has published the whole split meanwhile.

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
        if not _is_published(job):  # publishing removes the work folder, which makes this build's writes fail
            raise
        return None, True


def _is_published(job: ShardJob) -> bool:
    """Whether the manifest is there and the work folder is gone; while a lost shard is written again both are there."""
    return job.work_folder.size(SETTINGS_FILE) is None and job.output.size(job.manifest) is not None


def _write(job: ShardJob) -> ShardRecord:
    odd: list[OddImage] = []
    bad: list[str] = []
    with job.output.publish(job.file_name, temporary_folder=job.work_folder) as sink:
        tar = _ShardStream(job, sink)
        for index, packed, target in _iter_packed(job, odd, bad):
            if not bad:  # after an unreadable image only check the rest of the shard, so that the error names all
                tar.append(index, packed, target)
        if bad:
            raise SourceError(_unreadable_message(bad))
        tar.finish()
    shard = ShardInfo(job.file_name, len(tar.rows), tar.position, tar.sha256.hexdigest())
    rows = _index_rows(tar.rows, job.number)
    record = ShardRecord(number=job.number, plan=job.plan, shard=shard, odd=tuple(odd), rows=rows)
    job.work_folder.write(ShardRecord.file_name(job.number), record.to_bytes(), durable=False)
    return record


class _ShardStream:
    """Writes a tar; collects some MB of samples, then makes their headers, hashes and writes them together.

    Doing this for one sample at a time is slower: decoding the next image evicts everything else from the CPU caches.
    """

    def __init__(self, job: ShardJob, sink: Sink) -> None:
        self.sink, self.sha256, self.position = sink, hashlib.sha256(), 0
        self.rows: list[IndexRow] = []
        self.keys, self.names = job.samples.keys.to_pylist(), job.samples.names.to_pylist()
        self.labels, self.wnids = job.samples.labels.tolist(), job.wnids
        self.has_objects = job.samples.documents is not None
        self._waiting: list[tuple[int, PackedImage, bytes | None]] = []
        self._waiting_bytes = 0

    def append(self, index: int, packed: PackedImage, target: bytes | None) -> None:
        self._waiting.append((index, packed, target))
        self._waiting_bytes += len(packed.data) + len(target or b"")
        if self._waiting_bytes >= _FLUSH_BYTES:
            self._flush()

    def finish(self) -> None:
        self._flush()
        self._write([END])

    def _flush(self) -> None:
        pieces: list[bytes] = []
        position = self.position
        for index, packed, target in self._waiting:
            key, label, data = self.keys[index], self.labels[index], packed.data
            members = self._members_after_image(index, packed, target)
            tail = _bytes_after_image(key.encode(), len(data), members)
            place = position + BLOCK + len(data) + len(padding(len(data))) + BLOCK
            image = (position + BLOCK, len(data), packed.width, packed.height, xxhash.xxh64_intdigest(data))
            content = members[0][1]
            self.rows.append((key, label, *image, place, len(content), xxhash.xxh64_intdigest(content)))
            pieces += (header(key.encode() + b".jpg", len(data)), data, tail)
            position += BLOCK + len(data) + len(tail)
        self._write(pieces)
        self._waiting, self._waiting_bytes = [], 0

    def _members_after_image(self, index: int, packed: PackedImage, target: bytes | None) -> list[tuple[bytes, bytes]]:
        """Extension and content of the members after the image; the first one is the target."""
        key, label, name = self.keys[index], self.labels[index], self.names[index].rpartition("/")[2]
        if self.has_objects:
            assert target is not None
            return [(b".json", target)]
        fields = "" if target is not None else f'"label": {label}, "class": {_quote(self.wnids[index])}, '
        description = (
            f'{{"key": {_quote(key)}, {fields}'
            f'"filename": {_quote(name)}, "width": {packed.width}, "height": {packed.height}}}'
        ).encode()
        first = (b".cls", b"%d" % label) if target is None else (b".png", target)
        return [first, (b".json", description)]

    def _write(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            self.sha256.update(piece)
        self.sink.write_all(pieces)
        self.position += sum(map(len, pieces))


def _finished(job: ShardJob) -> ShardRecord | None:
    """The record of the shard, if the shard is finished and its tar has the recorded size and SHA-256."""
    name = ShardRecord.file_name(job.number)
    if job.work_folder.size(name) is None:
        return None
    record = ShardRecord.from_bytes(job.number, job.work_folder.read(name))
    if record is None or record.plan != job.plan or job.output.size(record.shard.name) != record.shard.bytes:
        return None
    if job.output.sha256(record.shard.name) != record.shard.sha256:
        return None
    bad = [f"{entry.file}: {entry.reason}" for entry in record.odd if entry.action == "skipped"]
    if bad and not job.skip_bad:
        raise SourceError(_unreadable_message(bad))
    return record


def _iter_packed(job: ShardJob, odd: list[OddImage], bad: list[str]) -> Iterator[tuple[int, PackedImage, bytes | None]]:
    """Check and convert the images of a shard, in order.

    Args:
        job: the shard.
        odd: receives the images that are converted or skipped.
        bad: receives a message for each unreadable image that may not be skipped.

    Yields:
        The position of the sample in the shard, the image to store, and its target if that is a file; nothing for an
        unreadable image.
    """

    def note(index: int, reason: str, action: str) -> None:
        odd.append(OddImage(job.samples.keys[index].as_py(), job.samples.describe(index), reason, action))

    with resize_in_one_thread(job.policy):
        pack = isolated(pack_image) if job.isolated else pack_image
        for index, data in iter_images(job.source, job.samples):
            note_place(index)
            try:
                packed = pack(data, job.policy)
                target = _target(job, index, packed)
            except ImageError as error:
                if job.skip_bad:
                    note(index, str(error), "skipped")
                else:
                    bad.append(f"{job.samples.describe(index)}: {error}")
                continue
            if packed.oddity is not None:
                note(index, packed.oddity, "converted")
            yield index, packed, target


def _target(job: ShardJob, index: int, packed: PackedImage) -> bytes | None:
    """Check and return the label map, or the objects, that are packed of a sample; None where it has a label alone.

    Raises:
        ImageError: it is no target of this image.
        SourceError: it cannot be read, or has changed since the source was listed.
    """
    if job.samples.documents is not None:
        document = job.samples.documents[index].as_py()
        check_target(document, packed.width, packed.height)
        return document
    if job.label_maps is None or job.samples.targets is None or job.samples.target_sizes is None:
        return None
    name = job.samples.targets[index].as_py()
    try:
        data = job.source.read(name)
    except OSError as error:
        raise SourceError(f"{job.source.location}/{name} cannot be read: {error}") from error
    if len(data) != job.samples.target_sizes[index]:
        raise SourceError(f"{name} has changed since the source was listed. Give the same command again.")
    try:
        return job.label_maps.pack(data, packed.width, packed.height)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error


def _bytes_after_image(key: bytes, size: int, members: Sequence[tuple[bytes, bytes]]) -> bytes:
    """What follows the `size` bytes of an image in the tar: padding, and the other members of its sample."""
    pieces = [padding(size)]
    for extension, content in members:
        pieces += (header(key + extension, len(content)), content, padding(len(content)))
    return b"".join(pieces)


def _index_rows(rows: list[IndexRow], shard: int) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * (len(INDEX_SCHEMA) - 1)
    arrays = (*columns[:2], [shard] * len(rows), *columns[2:])
    return pa.table(
        [pa.array(values, field.type) for values, field in zip(arrays, INDEX_SCHEMA, strict=True)], INDEX_SCHEMA
    )


def _unreadable_message(bad: list[str]) -> str:
    listed = "\n  ".join(bad)
    return (
        f"{len(bad)} unreadable image{'s' * (len(bad) > 1)}:\n  {listed}\nLeave them out with --on-bad skip; or "
        "replace them and pack into another --output, since that changes the source."
    )
