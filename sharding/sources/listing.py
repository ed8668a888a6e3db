"""The listing of a split: every image in the source, its class, and the position of its bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from sharding.errors import SourceError
from sharding.images import MAX_IMAGE_BYTES
from sharding.label_maps import LabelMaps
from sharding.manifest import ClassInfo
from sharding.tarfiles import MAX_NAME

_WNID = re.compile(r"^n\d{8}$")
_WNID_IN_NAME = re.compile(r"(?:^|/)(n\d{8})_[^/]*$")
_LONGEST_KEY = MAX_NAME - len(".json")
_HASH = 12  # hexadecimal digits
_LISTED_COLLISIONS = 20
# ImageNet's own file names, with or without the class that Hugging Face appends.
_IMAGENET_STEM = re.compile(r"^(n\d{8}_\d+|ILSVRC2012_(?:val|test)_\d{8})(?:_n\d{8})?$")


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Every image of one split. Columns have the length `[samples]` unless another shape is given.

    Attributes:
        source_format: one of `sharding.source_format.SourceFormat`.
        split: name of the split, such as `train` or `validation`.
        classes: label `i` means `classes[i]`; sorted by WordNet id.
        files: `[files]`; paths inside the source folder.
        file: int32; position in `files` of the file that holds the image.
        names: path of the image in the source; its last part is the image's file name.
        keys: key of the sample, all different.
        labels: int32; label of the image.
        offsets: int64; position of the image's first byte in its file, or its row in a parquet file.
        sizes: int64; size of the image in bytes (in parquet, the average of its row group).
        blocks: int32; in parquet the row group, counted over all files; None where each image can be read alone.
        targets: path of the label map of each image in the source; None where a sample has a label alone.
        target_sizes: int64; size of each label map in bytes.
        label_maps: values that the pixels of the label maps may have.
        documents: content of KEY.json of each image, with its objects; None where a sample has no objects.
        has_objects: bool; whether each image has an object that is no crowd.
        is_zip: whether images are members of a zip file, read in place.
        faults: a line for each annotation or image that is wrong and was left out.
        classes_found: whether the classes are those found in this split, instead of a list of all classes.
        notes: notes for the user.
    """

    source_format: str
    split: str
    classes: tuple[ClassInfo, ...]
    files: pa.StringArray
    file: NDArray[np.int32]
    names: pa.StringArray
    keys: pa.StringArray
    labels: NDArray[np.int32]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    blocks: NDArray[np.int32] | None = None
    targets: pa.StringArray | None = None
    target_sizes: NDArray[np.int64] | None = None
    label_maps: LabelMaps | None = None
    documents: pa.LargeBinaryArray | None = None
    has_objects: NDArray[np.bool_] | None = None
    is_zip: bool = False
    faults: tuple[str, ...] = ()
    classes_found: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_archives(self) -> bool:
        """Whether images are ranges of larger files."""
        return self.is_zip or self.source_format == "ilsvrc"

    def describe(self, sample: int) -> str:
        """Describe the place of an image in the source, for a message."""
        file, name = self.files[int(self.file[sample])].as_py(), self.names[sample].as_py()
        return name if file == name else f"{file}: {name}"

    def check(self) -> None:
        """Refuse an empty listing, repeated keys, and files too large to be images.

        Raises:
            SourceError: the listing is empty, a file is too large, two files have the same key, or the name of a file
                says another class than its folder.
        """
        if not len(self):
            raise SourceError(f"split {self.split!r} has no images")
        large = np.flatnonzero(self.sizes > MAX_IMAGE_BYTES)
        if self.blocks is None and len(large):
            raise SourceError(
                f"{self.describe(int(large[0]))} has {int(self.sizes[large[0]]):,} bytes; an image may have "
                f"{MAX_IMAGE_BYTES:,}. Remove it."
            )
        self._refuse_other_classes()
        order = np.argsort(self.keys.to_numpy(zero_copy_only=False), kind="stable")
        ordered = self.keys.take(pa.array(order)).to_pylist()
        repeated = [position for position in range(1, len(ordered)) if ordered[position] == ordered[position - 1]]
        if repeated:
            pairs = "\n  ".join(
                f"{ordered[at]}: {self.describe(int(order[at - 1]))} and {self.describe(int(order[at]))}"
                for at in repeated[:_LISTED_COLLISIONS]
            )
            more = len(repeated) - _LISTED_COLLISIONS
            raise SourceError(
                f"{len(repeated):,} images have the name and the class of another one:\n  {pairs}"
                + (f"\n  and {more:,} more" if more > 0 else "")
                + "\nRename or remove one of each."
            )

    def _refuse_other_classes(self) -> None:
        """Refuse images whose names begin with the WordNet id of another class than that of their label.

        Raises:
            SourceError: there are such images; the message names two.
        """
        ids = [entry.wnid if _WNID.match(entry.wnid) else None for entry in self.classes]
        if not any(ids):
            return
        wrong = [
            sample
            for sample, (name, label) in enumerate(zip(self.names.to_pylist(), self.labels.tolist(), strict=True))
            if ids[label] is not None and (found := _WNID_IN_NAME.search(name)) and found[1] != ids[label]
        ]
        if wrong:
            shown = " and ".join(f"{self.describe(sample)} (class {ids[self.labels[sample]]})" for sample in wrong[:2])
            raise SourceError(
                f"{len(wrong):,} images have another WordNet id in their name than that of their class, such as "
                f"{shown}. Move them to the right class, or rename those that are right."
            )

    def digest(self) -> str:
        """SHA-256 in hex over keys, labels and (except for parquet) sizes, sorted by key; the form does not matter."""
        keys = self.keys.to_numpy(zero_copy_only=False)
        order = np.argsort(keys, kind="stable")
        digest = hashlib.sha256("\n".join(keys[order]).encode())
        digest.update(self.labels[order].astype("<i4").tobytes())
        if self.blocks is None:
            digest.update(self.sizes[order].astype("<i8").tobytes())
        if self.target_sizes is not None and self.label_maps is not None:
            digest.update(self.target_sizes[order].astype("<i8").tobytes())
            maps = self.label_maps
            digest.update(repr((maps.class_values, maps.ignore_index)).encode())
            if maps.ignored_values or maps.colours:
                digest.update(repr((maps.ignored_values, maps.colours)).encode())
        if self.documents is not None:
            for document in self.documents.take(pa.array(order)).to_pylist():
                digest.update(hashlib.sha256(document).digest())
        return digest.hexdigest()


def select_samples(listing: Listing, samples: NDArray[np.int64]) -> Listing:
    """Select the samples of one shard from a listing; the result has no classes and no notes."""
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
        targets=None if listing.targets is None else listing.targets.take(pa.array(samples)),
        target_sizes=None if listing.target_sizes is None else listing.target_sizes[samples],
        documents=None if listing.documents is None else listing.documents.take(pa.array(samples)),
        has_objects=None if listing.has_objects is None else listing.has_objects[samples],
        is_zip=listing.is_zip,
    )


def keep_samples(listing: Listing, samples: NDArray[np.int64], split: str, *notes: str) -> Listing:
    """Return a split of these samples alone, with the classes of the listing and all that is said about it."""
    return dataclasses.replace(
        select_samples(listing, samples),
        split=split,
        classes=listing.classes,
        label_maps=listing.label_maps,
        faults=listing.faults,
        classes_found=listing.classes_found,
        notes=(*listing.notes, *notes),
    )


def sample_keys(names: Sequence[str], class_folders: Sequence[str]) -> pa.StringArray:
    """Make the keys of the images of a split.

    A key is the stem of the file, after its class unless the name is one of ImageNet's own. WebDataset ends a key at
    the first dot and tar names are bytes, so every character except ASCII letters, digits, `_` and `-` becomes `_`.
    Keys that collide, or are too long for a tar header, end in a hash of class and name; ImageNet's own names do not,
    since an image that comes twice is a fault.

    Args:
        names: path of each image in the source.
        class_folders: name of its class; empty where ImageNet's own names need none.
    """
    keys = [_plain_key(name, folder) for name, folder in zip(names, class_folders, strict=True)]
    count = Counter(keys)
    unusual = [
        number
        for number, key in enumerate(keys)
        if (count[key] > 1 and not _IMAGENET_STEM.match(key)) or len(key) > _LONGEST_KEY
    ]
    for number in unusual:
        text = f"{class_folders[number]}/{names[number]}".encode("utf-8", "surrogateescape")
        keys[number] = f"{keys[number][: _LONGEST_KEY - _HASH - 1]}_{xxhash.xxh64_hexdigest(text)[:_HASH]}"
    return pa.array(keys, pa.string())


def _plain_key(name: str, class_folder: str) -> str:
    stem = name.rpartition("/")[2].rpartition(".")[0] or name.rpartition("/")[2]
    known = _IMAGENET_STEM.match(stem)
    if known:
        return known[1]
    if class_folder and not stem.startswith(f"{class_folder}_"):
        stem = f"{class_folder}_{stem}"
    return re.sub(r"[^A-Za-z0-9_-]", "_", stem)
