"""Read samples by offset, check them, and turn them into pixels. No torch: loader workers run this module."""

import errno
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.augment.decode import DecodeError, Pixels
from pipeline.augment.transforms import EvaluationAugment, TrainAugment
from pipeline.common.errors import PipelineError
from pipeline.config.schema import AugmentConfig
from pipeline.data.cache import RemoteShards, ShardCache
from pipeline.data.damaged_samples import SUBSTITUTES, DamagedSampleError, Replacement, draw_substitutes
from pipeline.data.index import SampleIndex

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
    """

    index_folder: str
    shards: str | RemoteShards
    augment: AugmentConfig
    image_size: int
    seed: int
    training: bool
    on_damage: Literal["stop", "replace"]


class _Place(NamedTuple):
    """Where a sample lies: its row, the position of its shard, and the fields of `pipeline.data.index.ROW`."""

    row: int
    shard: int
    offset: int
    xxh64: int
    size: int
    label: int


class Augment(Protocol):
    """An augmentation: first the random numbers of many samples, then the pixels of each."""

    def draw(self, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> Sequence[Any]:
        """Draw the random numbers of each sample, as a function of (seed, epoch, sample).

        Args:
            epochs: int64 [N], epoch in which each sample is read.
            samples: int64 [N], row of each sample in the index.

        Returns:
            N objects, one for each call of `__call__`.
        """
        ...

    def __call__(self, encoded: bytes, drawn: Any, out: Pixels) -> None:
        """Decode and augment one image.

        Args:
            encoded: content of the image file.
            drawn: element of the result of `draw`.
            out: uint8 [H, W, 3], RGB, written.

        Raises:
            DecodeError: the image cannot be decoded.
        """
        ...


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
        self._augment = build_augment(spec)
        self._cache = None if isinstance(spec.shards, str) else ShardCache(spec.shards)
        self._open: OrderedDict[int, int] = OrderedDict()

    def close(self) -> None:
        """Close the open shards."""
        while self._open:
            os.close(self._open.popitem()[1])

    def fill(
        self, rows: NDArray[np.int64], epochs: NDArray[np.int64], pixels: Pixels, labels: NDArray[np.int64]
    ) -> list[Replacement]:
        """Read and augment samples.

        Args:
            rows: int64 [N], row of each sample in the index.
            epochs: int64 [N], epoch in which each sample is read.
            pixels: uint8 [N, H, W, 3], RGB, written.
            labels: int64 [N], written.

        Returns:
            The samples that were replaced; empty unless `on_damage` is `replace`.

        Raises:
            DamagedSampleError: a sample is damaged, and `on_damage` is `stop` or no substitute can be read either.
            LoaderError: reading or augmenting a sample failed for another reason; the message names the sample.
        """
        replaced = []
        drawn = self._augment.draw(epochs, rows)
        places = self._locate(rows)
        for i, place in enumerate(places):
            try:
                if i == 0:
                    self._request_read_ahead(places)
                labels[i] = self._fill_one(place, drawn[i], pixels[i])
            except DamagedSampleError as error:
                if self._spec.on_damage == "stop":
                    raise DamagedSampleError(f"{error}; {self._remedy()}") from error
                substitute, labels[i] = self._substitute(place.row, int(epochs[i]), drawn[i], pixels[i])
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

    def _fill_one(self, place: _Place, drawn: Any, out: Pixels) -> int:
        """Read a sample, write its augmented pixels into `out`, and return its label."""
        self._reading[0] = place.row
        try:
            self._augment(self._read(place), drawn, out)
        except DecodeError as error:
            raise DamagedSampleError(f"{self._describe(place.row)} {error}") from error
        return place.label

    def _substitute(self, row: int, epoch: int, drawn: Any, out: Pixels) -> tuple[int, int]:
        """Read another sample in place of the damaged `row`; return (row of the substitute, its label).

        The substitute depends on (seed, epoch, row) alone, so every rank and worker chooses the same one.
        """
        last: DamagedSampleError | None = None
        for place in self._locate(draw_substitutes(self._spec.seed, epoch, row, len(self._index.rows))):
            try:
                return place.row, self._fill_one(place, drawn, out)
            except DamagedSampleError as error:
                last = error
        raise DamagedSampleError(
            f"{self._describe(row)} is damaged, as are all {SUBSTITUTES} substitutes drawn for it; the last: {last}"
        )

    def _read(self, place: _Place) -> bytes:
        """Read the encoded image of a sample and check its length and its digest against the index."""
        data = os.pread(self._descriptor(place.shard), place.size, place.offset)
        if len(data) != place.size:
            raise DamagedSampleError(
                f"{self._describe(place.row)} is cut off: {len(data)} of {place.size} bytes are there"
            )
        if xxhash.xxh64_intdigest(data) != place.xxh64:
            raise DamagedSampleError(
                f"{self._describe(place.row)} was changed: the digest of its bytes is not the one in the index"
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


def build_augment(spec: ReaderSpec) -> Augment:
    """Build the augmentation that a spec asks for."""
    if spec.training and spec.augment.mode == "faithful":
        from pipeline.augment.timm_transforms import FaithfulAugment  # imports torch, which the others do without

        return FaithfulAugment(spec.augment, spec.image_size, spec.seed)
    if spec.training:
        return TrainAugment(spec.augment, spec.image_size, spec.seed)
    return EvaluationAugment(spec.augment, spec.image_size)
