"""Read a shard from its first byte to its last: its SHA-256, its samples and its faults."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
import xxhash

from sharding.coco import check_target
from sharding.errors import ImageError, ManifestError, SourceError
from sharding.images import ImagePolicy, pack_image
from sharding.index_table import INDEX_SCHEMA
from sharding.isolation import isolated
from sharding.label_maps import LABEL_MAP, LabelMaps
from sharding.manifest import OddImage
from sharding.pool import note_place
from sharding.sample_labels import ClassEvidence, Labelled, read_label
from sharding.samples import IndexedImage, TarSamples
from sharding.storage import Folder
from sharding.tarfiles import Member, iter_members

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
        evidence: what the samples say about their classes.
        odd: unusual images, which a training reads all the same, in the order of the tar.
        faults: the faults.
        left_out: names of the members that belong to no sample.
        neighbours: whether the members of each sample follow one another, as WebDataset requires.
    """

    name: str
    bytes: int
    sha256: str
    rows: list[dict[str, Any]]
    evidence: ClassEvidence
    odd: list[OddImage]
    faults: list[Fault]
    left_out: list[str]
    neighbours: bool

    def table(self, shard: int) -> pa.Table:
        """The rows as a part of the index, with the position of the shard."""
        return pa.Table.from_pylist([{**row, "shard": shard} for row in self.rows], INDEX_SCHEMA)


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


def scan_shard(
    folder: Folder,
    name: str,
    *,
    decode_check: bool,
    image_member: str | None = None,
    in_isolation: bool = False,
    label_maps: LabelMaps | None = None,
    object_classes: int | None = None,
) -> Scan:
    """Read one shard.

    Args:
        folder: folder of the shards.
        name: file name of the tar.
        decode_check: whether to decode every image.
        image_member: extension of the image; None takes the usual ones.
        in_isolation: whether each image is decoded in a process of its own, because a worker crashed in this shard.
        label_maps: values of the label maps; None where a sample has a label.
        object_classes: number of classes of the objects in KEY.json; None where a sample has none.

    Raises:
        OSError: the file cannot be read at all.
    """
    size = folder.size(name) or 0
    policy = ImagePolicy(decode_check=decode_check)
    rows, odd, faults, evidence = [], [], [], ClassEvidence()
    content = TarSamples(image_member, None if label_maps is None else LABEL_MAP)
    describe_image = isolated(_describe_image) if in_isolation else _describe_image
    with folder.open_stream(name) as opened:
        stream = _Stream(opened, folder, name)
        try:
            for member in iter_members(stream.read_at, 0, size, name):
                note_place(member.offset)
                content.add(
                    member,
                    lambda part: stream.read_at(part.offset, part.size),
                    lambda part, data: describe_image(part, data, policy),
                )
        except SourceError as error:
            faults.append(Fault(name, "", str(error).removeprefix(f"{name} ")))
        stream.finish()
    neighbours = True
    for sample in content.finish():
        neighbours &= sample.are_neighbours
        if sample.is_repeated:
            faults.append(Fault(name, "", f"the key {sample.key!r} comes more than once"))
            continue
        try:
            image = sample.image()
            if object_classes is not None:
                labelled, target = Labelled(0, ()), sample.target("json")
                check_target(sample.fields["json"], image.columns["width"], image.columns["height"], object_classes)
            elif label_maps is None:
                labelled = read_label(sample.key, sample.fields)
                target = sample.target("cls" if "cls" in sample.fields else "json")
            else:
                labelled, target = Labelled(0, ()), sample.target(LABEL_MAP)
                label_maps.check(sample.fields[LABEL_MAP], image.columns["width"], image.columns["height"])
        except (ImageError, SourceError) as error:
            faults.append(Fault(name, sample.key, str(error)))
        else:
            rows.append({"key": sample.key, "label": labelled.label, **image.columns, **target})
            if image.oddity is not None:
                odd.append(OddImage(sample.key, name, image.oddity, "kept"))
            evidence.add(labelled, f"{name}: {sample.key}")
    return Scan(
        name=name,
        bytes=stream.position,
        sha256=stream.sha256.hexdigest(),
        rows=rows,
        evidence=evidence,
        odd=odd,
        faults=faults,
        left_out=content.left_out,
        neighbours=neighbours,
    )


def _describe_image(member: Member, data: bytes, policy: ImagePolicy) -> IndexedImage:
    """The columns of the index for an image, and what is unusual about it.

    Raises:
        ImageError: the image is damaged or too large, or no decoder of the trainer reads it.
    """
    packed = pack_image(data, policy)
    columns = {
        "offset": member.offset,
        "size": member.size,
        "width": packed.width,
        "height": packed.height,
        "xxh64": xxhash.xxh64_intdigest(data),
    }
    return IndexedImage(columns, packed.oddity)


@dataclass(frozen=True)
class ScanJob:
    """A shard to scan.

    Attributes:
        folder: folder of the shards.
        name: file name of the tar.
        decode_check: whether to decode every image.
        image_member: extension of the image; None takes the usual ones.
        isolated: whether each image is decoded in a process of its own, because a worker crashed in this shard.
    """

    folder: Folder
    name: str
    decode_check: bool
    image_member: str | None = None
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
        scan = scan_shard(
            job.folder,
            job.name,
            decode_check=job.decode_check,
            image_member=job.image_member,
            in_isolation=job.isolated,
        )
    except OSError as error:
        raise ManifestError(f"{job.folder.location}/{job.name} cannot be read: {error}") from error
    return dataclasses.replace(scan, rows=[]), scan.table(0)
