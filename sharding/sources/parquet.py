"""ImageNet in Hugging Face's form: parquet files with the columns `image` (struct of bytes and path) and `label`.

An image cannot be read without its row group, so each shard takes whole row groups (see `plan`). The worker that writes
a shard streams its row groups into a temporary file and reads the images from there in the order of the shard.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from sharding.errors import OutputError, SourceError
from sharding.manifest import MAX_CLASSES, ClassInfo
from sharding.mistaken_files import describe_file
from sharding.sources.classes import ClassList
from sharding.sources.folder import SPLIT_OF
from sharding.sources.listing import Listing, sample_keys
from sharding.storage import Folder

_SPLIT = re.compile(r"(?:^|/)(train|validation|valid|val|test)(?:[-_./]|$)")
# train-00000-of-00294.parquet, or train-00000-of-00294-1c3b2a.parquet
_NUMBERED = re.compile(r"^(?P<stem>.*)-(?P<number>\d+)-of-(?P<count>\d+)(?:-[0-9a-f]+)?\.parquet$")
_WNID = re.compile(r"(?:^|_)(n\d{8})(?:\.[A-Za-z]+$|_\d)")
_IS_WNID = re.compile(r"^n\d{8}$")
_SPOOL_IN_MEMORY = 64 << 20
_ROWS_AT_ONCE = 32


def find_splits(root: Folder) -> dict[str, list[str]]:
    """Find the parquet files of each split by the name of the split in the name of the file or of its folder."""
    found: dict[str, list[str]] = {}
    for info in [*root.list(), *root.folder("data").list(), *_in_split_folders(root)]:
        relative = info.path[len(root.path) :].lstrip("/")
        match = _SPLIT.search(relative)
        if info.type == fs.FileType.File and relative.endswith(".parquet") and match:
            found.setdefault(SPLIT_OF[match[1]], []).append(relative)
    return found


def is_unlabelled(root: Folder, split: str) -> bool:
    """Whether no image of a split has a label: ImageNet's test split has -1, or no such column."""
    for file in find_splits(root).get(split, []):
        try:
            with pq.ParquetFile(root.join(file), filesystem=root.filesystem) as parquet:
                if "label" in parquet.schema_arrow.names:
                    label = parquet.read(columns=["label"], use_threads=False)["label"]
                    is_number = pa.types.is_integer(label.type)
                    if not is_number or any(value is not None and value >= 0 for value in label.to_pylist()):
                        return False
        except (pa.ArrowException, OSError):
            return False
    return True


def _in_split_folders(root: Folder) -> list[fs.FileInfo]:
    """List the content of the split folders: the first level only, because class folders have thousands of entries."""
    infos = root.list()
    folders = [info.base_name for info in infos if info.type == fs.FileType.Directory and info.base_name in SPLIT_OF]
    return [info for name in folders for info in root.folder(name).list()]


def list_parquet(root: Folder, split: str, known: ClassList | None) -> Listing:
    """List the images of a split in parquet files; reads their labels and names, not their bytes.

    Args:
        root: folder of the source.
        split: name of the split.
        known: all classes, where a class list is available; None uses the names in the files' metadata.

    Raises:
        SourceError: there is no such split, files are missing, columns differ, or labels contradict the classes.
    """
    files = find_splits(root).get(split)
    if not files:
        raise SourceError(f"{root.location} has no parquet files of split {split!r} ({split}-00000-of-….parquet)")
    _refuse_gaps(root, files)
    names: list[str] = []
    labels, sizes, rows, blocks, file_of = [], [], [], [], []
    class_names: list[str] | None = None
    num_blocks = 0
    for number, file in enumerate(files):
        with _open(root, file) as parquet:
            class_names = class_names or _class_names(parquet)
            table = parquet.read(columns=["image.path", "label"], use_threads=False)
            paths = table["image"].combine_chunks().field("path").to_pylist()
            label = table["label"].to_numpy()
            if label.size and (label.dtype.kind not in "iu" or label.min() < 0 or label.max() >= MAX_CLASSES):
                raise SourceError(
                    f"{root.location}/{file}: labels must be whole numbers from 0 to {MAX_CLASSES - 1:,}; this file "
                    "has others, or no labels"
                )
            names += [path or f"{split}_{len(names) + row:08d}.JPEG" for row, path in enumerate(paths)]
            labels.append(label.astype(np.int32))
            rows.append(np.arange(len(label), dtype=np.int64))
            file_of.append(np.full(len(label), number, np.int32))
            for group in range(parquet.num_row_groups):
                metadata = parquet.metadata.row_group(group)
                count = metadata.num_rows
                sizes.append(np.full(count, metadata.total_byte_size // max(1, count), np.int64))
                blocks.append(np.full(count, num_blocks, np.int32))
                num_blocks += 1
    all_labels = np.concatenate(labels)
    wnids = [match[1] if (match := _WNID.search(name)) else None for name in names]
    classes = _classes(root, known, class_names, all_labels, wnids, names)
    return Listing(
        source_format="parquet",
        split=split,
        classes=classes.classes,
        files=pa.array(files, pa.string()),
        file=np.concatenate(file_of),
        names=pa.array(names, pa.string()),
        keys=sample_keys(names, [str(label) for label in all_labels]),
        labels=all_labels,
        offsets=np.concatenate(rows),
        sizes=np.concatenate(sizes) if sizes else np.zeros(0, np.int64),
        blocks=np.concatenate(blocks) if blocks else np.zeros(0, np.int32),
    )


def _refuse_gaps(root: Folder, files: list[str]) -> None:
    """Refuse a split with missing files; the file names contain the number of files.

    Raises:
        SourceError: files are missing; the message names the first.
    """
    sets: dict[tuple[str, str], set[int]] = {}
    for file in files:
        match = _NUMBERED.match(file)
        if match:
            sets.setdefault((match["stem"], match["count"]), set()).add(int(match["number"]))
    for (stem, count), numbers in sets.items():
        missing = sorted(set(range(int(count))) - numbers)
        if missing:
            raise SourceError(
                f"{root.location}: {len(missing)} of the {int(count)} files {stem}-…-of-{count}.parquet are missing, "
                f"the first is {stem}-{missing[0]:05d}-of-{count}.parquet. Fetch them."
            )


def _open(root: Folder, file: str) -> pq.ParquetFile:
    """Open one file and check its columns.

    Raises:
        SourceError: the file is damaged or has other columns.
    """
    try:
        parquet = pq.ParquetFile(root.join(file), filesystem=root.filesystem, pre_buffer=False, buffer_size=1 << 20)
    except (pa.ArrowException, OSError) as error:
        what = describe_file(root, file) or f"damaged or no parquet file: {error}"
        raise SourceError(f"{root.location}/{file} is {what}") from error
    schema = parquet.schema_arrow
    image = schema.field("image").type if "image" in schema.names else None
    if (
        image is None
        or not pa.types.is_struct(image)
        or image.get_field_index("bytes") < 0
        or "label" not in schema.names
    ):
        raise SourceError(
            f"{root.location}/{file} has the columns {', '.join(schema.names)}; it must have image (struct of "
            "bytes and path) and label, as Hugging Face writes them"
        )
    return parquet


def _class_names(parquet: pq.ParquetFile) -> list[str] | None:
    """Read the names of the classes from the metadata that Hugging Face's library writes; None without it."""
    try:
        features = json.loads((parquet.schema_arrow.metadata or {})[b"huggingface"])
        return list(features["info"]["features"]["label"]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _classes(
    root: Folder,
    known: ClassList | None,
    class_names: list[str] | None,
    labels: np.ndarray[Any, np.dtype[np.int32]],
    wnids: list[str | None],
    names: list[str],
) -> ClassList:
    """Find the classes, by label; WordNet ids come from the names of the images, where they contain them.

    Args:
        root: folder of the source, for messages.
        known: all classes, if a class list is available.
        class_names: class names from the metadata, by label, if there are any.
        labels: int32 `[samples]`.
        wnids: WordNet id in the name of each image, or None.
        names: name of each image.

    Raises:
        SourceError: a label stands for two classes, is not in the class list, or has no name.
    """
    id_of: dict[int, str] = {}
    for label, wnid, name in zip(labels.tolist(), wnids, names, strict=True):
        if wnid is not None and id_of.setdefault(label, wnid) != wnid:
            raise SourceError(f"{root.location}: label {label} is {id_of[label]}, but the image {name} has it too")
    count = max(int(labels.max(initial=-1)) + 1, len(class_names or ()))
    if known is not None:
        wrong = [
            label for label, wnid in id_of.items() if label >= len(known.classes) or known.classes[label].wnid != wnid
        ]
        if count > len(known.classes) or wrong:
            raise SourceError(
                f"{root.location}: labels do not follow the {len(known.classes)} classes of {known.origin}"
                + (f" (label {wrong[0]} is {id_of[wrong[0]]})" if wrong else "")
            )
        return known
    shown = class_names or [id_of.get(label, str(label)) for label in range(count)]
    if len(shown) < count:
        raise SourceError(f"{root.location}: label {count - 1} has no name: the metadata names {len(shown)} classes")
    return ClassList(tuple(ClassInfo(id_of.get(label, shown[label]), shown[label]) for label in range(count)))


def share_classes(listings: Sequence[Listing]) -> list[Listing]:
    """Complete the classes that a split does not know by those of the other splits, label by label.

    A split tells the WordNet id of a class by the names of its images, so not of a class without images; and without
    the metadata of Hugging Face's library, a class is only its number.

    Args:
        listings: splits of one source; those in other forms, or with a class list, stay as they are.
    """
    found = [listing for listing in listings if listing.source_format == "parquet" and listing.classes_found]
    return [
        dataclasses.replace(
            listing, classes=tuple(_best_known(label, entry, found) for label, entry in enumerate(listing.classes))
        )
        if any(listing is entry for entry in found)
        else listing
        for listing in listings
    ]


def _best_known(label: int, own: ClassInfo, listings: Sequence[Listing]) -> ClassInfo:
    """A class as the split that knows its WordNet id describes it, or else one that knows its name."""
    if _IS_WNID.match(own.wnid):
        return own
    is_number = own.wnid == str(label)
    others = [listing.classes[label] for listing in listings if label < len(listing.classes)]
    for other in others:
        if _IS_WNID.match(other.wnid) and (is_number or own.name == other.name or other.name == other.wnid):
            return ClassInfo(other.wnid, other.name if is_number else own.name)
    return next((other for other in others if is_number and other.wnid != str(label)), own)


def iter_rows(root: Folder, samples: Listing) -> Iterator[tuple[int, bytes]]:
    """Read the encoded images of some samples, in order.

    Yields:
        The position in `samples`, and the bytes of the image; none for a row without an image.

    Raises:
        SourceError: a file cannot be read.
        OutputError: the temporary file cannot be written.
    """
    places: dict[int, tuple[int, int]] = {}
    with tempfile.SpooledTemporaryFile(_SPOOL_IN_MEMORY) as spool:
        for number in range(len(samples.files)):
            wanted = {int(samples.offsets[index]): int(index) for index in np.flatnonzero(samples.file == number)}
            _spool_file(root, samples.files[number].as_py(), wanted, spool, places)
        for index in range(len(samples)):
            offset, size = places[index]
            spool.seek(offset)
            yield index, spool.read(size)


def _append_to_spool(spool: Any, data: bytes) -> None:
    try:
        spool.write(data)
    except OSError as error:
        raise OutputError(
            f"the images of a shard could not be written to a temporary file: {error}. Set TMPDIR to a folder with "
            "enough space."
        ) from error


def _spool_file(
    root: Folder, file: str, wanted: dict[int, int], spool: Any, places: dict[int, tuple[int, int]]
) -> None:
    """Append the images of some rows of a file to the temporary file.

    Args:
        root: folder of the source.
        file: path of the parquet file.
        wanted: position of the sample, by row.
        spool: the temporary file.
        places: receives offset and size in `spool`, by position of the sample.

    Raises:
        SourceError: a row group is damaged.
        OutputError: the temporary file cannot be written.
    """
    with _open(root, file) as parquet:
        row = 0
        for group in range(parquet.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            if any(position in wanted for position in range(row, row + count)):
                try:
                    batches = parquet.iter_batches(_ROWS_AT_ONCE, [group], columns=["image.bytes"], use_threads=False)
                    position = row
                    for batch in batches:
                        for value in batch.column("image").field("bytes"):
                            index = wanted.get(position)
                            position += 1
                            if index is None:
                                continue
                            data = value.as_py() or b""  # a row without an image is an empty image
                            places[index] = (spool.tell(), len(data))
                            _append_to_spool(spool, data)
                except (pa.ArrowException, OSError) as error:
                    raise SourceError(f"{root.location}/{file}, row group {group} is damaged: {error}") from error
            row += count
