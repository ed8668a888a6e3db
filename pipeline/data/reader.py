"""Reads samples by offset, checks them, and turns them into pixels. No torch: this is what a loader worker runs."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from pipeline.augment.decode import DecodeError, Pixels
from pipeline.config.schema import AugmentConfig
from pipeline.data.cache import RemoteShards, ShardCache
from pipeline.data.index import SampleIndex
from pipeline.order import draws

_OPEN_SHARDS = 64


class DamagedSampleError(ValueError):
    """A sample is not what the index says; the message names shard and key."""


class LoaderError(RuntimeError):
    """Reading failed for a reason that is not in the data: the machine, or this program."""


@dataclass(frozen=True)
class ReaderSpec:
    """All that a process needs to read a split; small and picklable.

    Attributes:
        index_folder: of `SampleIndex.map`.
        shards: local folder with the shards, or where they lie remotely.
        augment: the augmentation.
        image_size: side of the pixels.
        seed: of the training.
        training: training augmentation, or evaluation's centre crop.
        on_damage: raise, or put another sample in the place of a damaged one.
    """

    index_folder: str
    shards: str | RemoteShards
    augment: AugmentConfig
    image_size: int
    seed: int
    training: bool
    on_damage: Literal["stop", "replace"]


@dataclass(frozen=True)
class Replacement:
    """A damaged sample and what was put in its place.

    Attributes:
        row: of the damaged sample.
        substitute: row of the sample that was read instead.
        reason: what was wrong, with shard and key.
    """

    row: int
    substitute: int
    reason: str


class _Place(NamedTuple):
    """Where a sample lies: its row, its shard, and its entry in the index (`pipeline.data.index.ROW`)."""

    row: int
    shard: int
    offset: int
    xxh64: int
    size: int
    label: int


class Augment(Protocol):
    """From encoded images to pixels."""

    def draw(self, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> Sequence[Any]:
        """Draw what is random for each of some samples, from (seed, epoch, sample) alone."""
        ...

    def __call__(self, encoded: bytes, drawn: Any, out: Pixels) -> None:
        """Write pixels of one sample into `out`, uint8 [H, W, 3]; `DecodeError` where the bytes are no image."""
        ...


class SampleReader:
    """Reads samples of a split into rows of a batch."""

    def __init__(self, spec: ReaderSpec) -> None:
        """Map the index; shards are opened when they are first read."""
        self._spec = spec
        self._index = SampleIndex.map(spec.index_folder)
        self._augment = build_augment(spec)
        self._cache = None if isinstance(spec.shards, str) else ShardCache(spec.shards)
        self._open: OrderedDict[int, int] = OrderedDict()

    def close(self) -> None:
        """Close the shards."""
        while self._open:
            os.close(self._open.popitem()[1])

    def fill(
        self, rows: NDArray[np.int64], epochs: NDArray[np.int64], pixels: Pixels, labels: NDArray[np.int64]
    ) -> list[Replacement]:
        """Read samples.

        Args:
            rows: int64 [N], in the index.
            epochs: int64 [N], in which each is read.
            pixels: uint8 [N, H, W, 3], written.
            labels: int64 [N], written.

        Returns:
            What was replaced; empty unless `on_damage` is `replace`.

        Raises:
            DamagedSampleError: a sample is not what the index says, and `on_damage` is `stop`.
            LoaderError: reading or augmenting a sample failed; the message names it.
        """
        replaced = []
        drawn = self._augment.draw(epochs, rows)
        places = self._locate(rows)
        for i, place in enumerate(places):
            try:
                if i == 0:
                    self._announce(places)
                labels[i] = self._fill_one(place, drawn[i], pixels[i])
            except DamagedSampleError as error:
                if self._spec.on_damage == "stop":
                    raise DamagedSampleError(f"{error}; {self._remedy()}") from error
                substitute, labels[i] = self._substitute(place.row, int(epochs[i]), drawn[i], pixels[i])
                replaced.append(Replacement(place.row, substitute, str(error)))
            except Exception as error:
                raise LoaderError(
                    f"{self._name(place.row)} could not be read: {type(error).__name__}: {error}"
                ) from error
        return replaced

    def _locate(self, rows: NDArray[np.int64]) -> "list[_Place]":
        """Look samples up in the index."""
        shards = self._index.shard_of(rows).tolist()
        entries = self._index.rows[rows].tolist()
        return [_Place(row, shard, *entry) for row, shard, entry in zip(rows.tolist(), shards, entries, strict=True)]

    def _fill_one(self, place: "_Place", drawn: Any, out: Pixels) -> int:
        """Read a sample, augment it as drawn, and return its label."""
        try:
            self._augment(self._read(place), drawn, out)
        except DecodeError as error:
            raise DamagedSampleError(f"{self._name(place.row)} {error}") from error
        return place.label

    def _substitute(self, row: int, epoch: int, drawn: Any, out: Pixels) -> tuple[int, int]:
        """Put a sample that can be read in the place of `row`, the same one anywhere; (its row, its label)."""
        candidates = draws.bits(draws.key(self._spec.seed, draws.Purpose.SUBSTITUTE, epoch, row), 16)
        last: DamagedSampleError | None = None
        for place in self._locate((candidates % np.uint64(len(self._index.rows))).astype(np.int64)):
            try:
                return place.row, self._fill_one(place, drawn, out)
            except DamagedSampleError as error:
                last = error
        raise DamagedSampleError(f"no substitute for {self._name(row)}: 16 others were damaged too, the last: {last}")

    def _read(self, place: "_Place") -> bytes:
        """Bytes of a sample's image, checked against the digest of the index."""
        data = os.pread(self._descriptor(place.shard), place.size, place.offset)
        if len(data) != place.size:
            raise DamagedSampleError(f"{self._name(place.row)} is cut off: {len(data)} of {place.size} bytes are there")
        if xxhash.xxh64_intdigest(data) != place.xxh64:
            raise DamagedSampleError(f"{self._name(place.row)} was changed: its bytes do not have the index's digest")
        return data

    def _announce(self, places: "list[_Place]") -> None:
        """Ask the kernel for all samples of a chunk at once, so that a disk or a server sees them side by side."""
        for place in places:
            try:
                descriptor = self._descriptor(place.shard)
            except DamagedSampleError:
                continue  # said when the sample is read
            if self._cache is not None:
                self._cache.touch(descriptor)
            os.posix_fadvise(descriptor, place.offset, place.size, os.POSIX_FADV_WILLNEED)

    def _descriptor(self, shard: int) -> int:
        """An open descriptor of a shard; the least recently used is closed when there are too many."""
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        descriptor = self._open_shard(self._index.shard_names[shard])
        if len(self._open) >= _OPEN_SHARDS:
            os.close(self._open.popitem(last=False)[1])
        self._open[shard] = descriptor
        return descriptor

    def _open_shard(self, name: str) -> int:
        """A descriptor of a shard, from the cache where it is remote."""
        if self._cache is not None:
            return self._cache.open(name)
        path = f"{self._spec.shards}/{name}"
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DamagedSampleError(f"shard {path} cannot be opened: {error.strerror}") from error

    def _name(self, row: int) -> str:
        """How a sample is named to the user."""
        shard = self._index.shard_names[self._index.shard_of(np.array([row]))[0]]
        return f"sample {self._index.keys([row])[0]} of {self._location()}/{shard}"

    def _remedy(self) -> str:
        """What the user can do about a damaged sample."""
        shards = self._spec.shards
        copy = (
            "" if isinstance(shards, str) else f"remove the node's copy in {shards.folder} if that alone is damaged, "
        )
        replace = ", or go on with --train.data.on-damage replace" if self._spec.training else ""
        return (
            f"python -m sharding.verify --shards '{self._location()}' finds all damage: {copy}"
            f"copy or pack the shard again{replace}"
        )

    def _location(self) -> str:
        """Where the shards lie, without the options of a URI."""
        shards = self._spec.shards
        return shards if isinstance(shards, str) else shards.location.split("?")[0]


def build_augment(spec: ReaderSpec) -> Augment:
    """The augmentation that a spec asks for."""
    from pipeline.augment import transforms as augment

    if spec.training and spec.augment.mode == "faithful":
        from pipeline.augment.timm_transforms import FaithfulAugment

        return FaithfulAugment(spec.augment, spec.image_size, spec.seed)
    if spec.training:
        return augment.TrainAugment(spec.augment, spec.image_size, spec.seed)
    return augment.EvaluationAugment(spec.augment, spec.image_size)
