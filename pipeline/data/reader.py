"""Read samples by offset, check them, and turn them into pixels. No torch: loader workers run this module."""

import errno
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import xxhash
from numpy.lib.recfunctions import structured_to_unstructured
from numpy.typing import NDArray

from pipeline.augment.decode import DecodeError
from pipeline.common.errors import PipelineError
from pipeline.config.schema import AugmentConfig, DetectionConfig, SegmentationConfig
from pipeline.data import damaged_samples
from pipeline.data.cache import RemoteShards, ShardCache
from pipeline.data.damaged_samples import DamagedSampleError, Replacement
from pipeline.data.index import SampleIndex
from pipeline.tasks import DEFAULT, find_task
from pipeline.tasks.layout import Layout, Slot

_OPEN_SHARDS = 64
"""Greatest number of shards that a reader keeps open."""
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)


class LoaderError(PipelineError, RuntimeError):
    """Reading failed, but not for damaged data: a worker was killed, a disk failed, or this program has an error."""


@dataclass(frozen=True)
class ReaderSpec:
    """Everything a process needs to read a split; small and picklable.

    Attributes:
        index_folder: folder of the node's copy of the index, which `SampleIndex.map` reads.
        shards: local folder with the shards, or the description of remote ones.
        augment: configuration of the augmentation.
        image_size: height and width of the pixels.
        seed: seed of the training.
        training: whether images get the training augmentation or the centre crop of the evaluation.
        on_damage: `stop` raises at a damaged sample; `replace` reads another sample in its place.
        task: name of the task that reads the samples.
        segmentation: crops and sizes of a segmentation.
        detection: sizes of a detection.
        model: name of the network that learns from the samples.
        class_of: class of each of the 256 values of a stored label map; empty where targets are labels.
    """

    index_folder: str
    shards: str | RemoteShards
    augment: AugmentConfig
    image_size: int
    seed: int
    training: bool
    on_damage: Literal["stop", "replace"]
    task: str = DEFAULT
    segmentation: SegmentationConfig = field(default_factory=SegmentationConfig)
    detection: DetectionConfig = field(default_factory=DetectionConfig)
    model: str = ""
    class_of: bytes = b""

    @cached_property
    def layout(self) -> Layout:
        """How a sample lies in memory."""
        targets = SampleIndex.map(self.index_folder).targets
        sizes = None if targets is None else structured_to_unstructured(targets[["height", "width", "size"]])
        return find_task(self.task).layout(self, sizes)


class _Place(NamedTuple):
    """Where a sample lies: its row, the position of its shard, and the fields of `pipeline.data.index.ROW`."""

    row: int
    shard: int
    offset: int
    xxh64: int
    size: int
    label: int


class SampleReader:
    """Reads samples of a split into the arrays of a batch."""

    def __init__(self, spec: ReaderSpec, reading: NDArray[np.int64] | None = None) -> None:
        """Map the index; a shard is opened when one of its samples is first read.

        Args:
            spec: what is read, and how.
            reading: int64 [1], receives the row of the sample that is being read, and -1 afterwards.
        """
        self._spec = spec
        self._reading = np.empty(1, np.int64) if reading is None else reading
        self._index = SampleIndex.map(spec.index_folder)
        self._augment = find_task(spec.task).augment(spec)
        self._reads_target = find_task(spec.task).reads_target
        self._cache = None if isinstance(spec.shards, str) else ShardCache(spec.shards)
        self._open: OrderedDict[int, int] = OrderedDict()

    def close(self) -> None:
        """Close the open shards."""
        while self._open:
            os.close(self._open.popitem()[1])

    def fill(self, slot: Slot) -> list[Replacement]:
        """Read and augment samples.

        Args:
            slot: `rows` and `epochs` say which samples; the rest is written.

        Returns:
            The samples that were replaced; empty unless `on_damage` is `replace`.

        Raises:
            DamagedSampleError: a sample is damaged, and `on_damage` is `stop` or no substitute can be read either.
            LoaderError: reading or augmenting a sample failed for another reason; the message names the sample.
        """
        replaced = []
        drawn = self._augment.draw(slot.epochs, slot.rows)
        places = self._locate(slot.rows)
        for i, place in enumerate(places):
            try:
                if i == 0:
                    self._request_read_ahead(places)
                self._fill_one(place, drawn[i], slot, i)
            except DamagedSampleError as error:
                if self._spec.on_damage == "stop":
                    raise DamagedSampleError(f"{error}; {self._remedy()}") from error
                substitute = self._replace(place.row, int(slot.epochs[i]), drawn[i], slot, i)
                replaced.append(Replacement(place.row, substitute, str(error)))
            except Exception as error:
                raise LoaderError(
                    f"{self._describe(place.row)} could not be read: {type(error).__name__}: {error}"
                ) from error
        self._reading[0] = -1
        return replaced

    def _locate(self, rows: NDArray[np.int64]) -> list[_Place]:
        """Look up where samples lie; `rows` is int64 [N]."""
        shards = self._index.shard_of(rows).tolist()
        entries = self._index.rows[rows].tolist()
        return [_Place(row, shard, *entry) for row, shard, entry in zip(rows.tolist(), shards, entries, strict=True)]

    def _fill_one(self, place: _Place, drawn: Any, slot: Slot, position: int) -> None:
        """Read a sample, and write its augmented pixels and its target into the slot."""
        self._reading[0] = place.row
        try:
            encoded, target = self._read(place), place.label
            if self._reads_target:
                target = self._read(self._target_of(place), "the target of ")
            self._augment.fill(encoded, target, drawn, slot, position)
        except DecodeError as error:
            raise DamagedSampleError(f"{self._describe(place.row)} {error}") from error

    def _target_of(self, place: _Place) -> _Place:
        """Look up where the target of a sample lies."""
        assert self._index.targets is not None
        target = self._index.targets[place.row]
        return place._replace(offset=int(target["offset"]), size=int(target["size"]), xxh64=int(target["xxh64"]))

    def _replace(self, row: int, epoch: int, drawn: Any, slot: Slot, position: int) -> int:
        """Read another sample in place of the damaged `row`; return the row of the substitute."""

        def read(candidate: int) -> None:
            [place] = self._locate(np.array([candidate]))
            self._fill_one(place, drawn, slot, position)

        return damaged_samples.replace(
            row, epoch, self._spec.seed, len(self._index.rows), read, name=self._describe(row)
        )

    def _read(self, place: _Place, what: str = "") -> bytes:
        """Read the encoded image of a sample, or its target, and check length and digest against the index."""
        data = os.pread(self._descriptor(place.shard), place.size, place.offset)
        if len(data) != place.size:
            raise DamagedSampleError(
                f"{what}{self._describe(place.row)} is cut off: {len(data)} of {place.size} bytes are there"
            )
        if xxhash.xxh64_intdigest(data) != place.xxh64:
            raise DamagedSampleError(
                f"{what}{self._describe(place.row)} was changed: the digest of its bytes is not the one in the index"
            )
        return data

    def _request_read_ahead(self, places: list[_Place]) -> None:
        """Ask the kernel to read ahead all samples of a chunk: the disk or file server gets the requests together."""
        for place in places:
            try:
                descriptor = self._descriptor(place.shard)
            except DamagedSampleError:
                continue  # reading the sample raises the same error
            if self._cache is not None:
                self._cache.touch(descriptor)
            os.posix_fadvise(descriptor, place.offset, place.size, os.POSIX_FADV_WILLNEED)

    def _descriptor(self, shard: int) -> int:
        """Return an open descriptor of a shard.

        With `_OPEN_SHARDS` open, or if this process may open no more files, close the least recently used one.
        """
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= _OPEN_SHARDS:
            self._close_one()
        while True:
            try:
                self._open[shard] = self._open_shard(self._index.shard_names[shard])
                return self._open[shard]
            except OSError as error:
                if error.errno not in _TOO_MANY_FILES or not self._open:
                    raise
                self._close_one()

    def _close_one(self) -> None:
        """Close the least recently used shard."""
        os.close(self._open.popitem(last=False)[1])

    def _open_shard(self, name: str) -> int:
        """Open a shard by its file name; a remote one through the node's cache."""
        if self._cache is not None:
            return self._cache.open(name)
        path = f"{self._spec.shards}/{name}"
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _TOO_MANY_FILES:
                raise  # no fault of the shard
            raise DamagedSampleError(f"shard {path} cannot be opened: {error.strerror}") from error

    def _describe(self, row: int) -> str:
        """Describe a sample for messages: its key and its shard."""
        return describe_sample(self._spec, row, self._index)

    def _remedy(self) -> str:
        """Describe what the user can do about a damaged sample."""
        shards = self._spec.shards
        cached = (
            "" if isinstance(shards, str) else f"if only the node's copy in {shards.folder} is damaged, remove it; "
        )
        replace = ", or train without the sample: --train.data.on-damage replace" if self._spec.training else ""
        return (
            f"list all damage with python -m sharding.verify --shards '{_location(shards)}'; {cached}"
            f"copy or build the shard again{replace}"
        )


def describe_sample(spec: ReaderSpec, row: int, index: SampleIndex | None = None) -> str:
    """Describe a sample for messages: its key and its shard. `index` is the open index; None opens it."""
    index = SampleIndex.map(spec.index_folder) if index is None else index
    shard = index.shard_names[index.shard_of(np.array([row]))[0]]
    return f"sample {index.keys([row])[0]} of {_location(spec.shards)}/{shard}"


def _location(shards: str | RemoteShards) -> str:
    """Return the folder or the URI of the shards, without the options of the URI."""
    return shards if isinstance(shards, str) else shards.location.split("?")[0]
