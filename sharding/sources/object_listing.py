"""The listing of a split whose images have objects, from whatever annotations these were read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import fs

from sharding.coco import CocoSet, target_member
from sharding.errors import SourceError
from sharding.sources.listing import Listing, keep_samples, sample_keys
from sharding.storage import Folder

__all__ = [
    "CLASSES",
    "SPLITS",
    "Place",
    "image_sizes",
    "keep_annotated",
    "list_files",
    "list_objects",
    "listed_names",
    "read_files",
]

SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
"""Names that the folder or the annotation file of each split may have."""
CLASSES = "classes.txt"
"""File in a source with the name of a class in each line, in the order of the labels."""
Place = tuple[int, int]
"""Offset and size of an image in its file, in bytes."""
_READERS = 16
_ORIENTATION = 0x0112


def list_objects(
    source_format: str,
    split: str,
    coco: CocoSet,
    files: Mapping[str, Place],
    images: str,
    where: str,
    *,
    notes: Iterable[str] = (),
) -> Listing:
    """List the images of a split with their objects; an image whose file is missing is a fault.

    Args:
        source_format: name of the form of the source.
        split: name of the split.
        coco: the images and their objects.
        files: place of each image by its name below `images`.
        images: folder of the images, or the zip that holds them.
        where: what names the images, for messages.
        notes: for the user.
    """
    in_zip = images.endswith(".zip")
    there = [image for image in coco.images if image.file_name in files]
    missing = [image for image in coco.images if image.file_name not in files]
    faults = (f"{where}: {image.file_name} (image {image.number}) is not in {images}" for image in missing)
    unnamed = len(files.keys() - {image.file_name for image in coco.images} - coco.doubled_files)
    if unnamed:
        notes = (*notes, f"{unnamed:,} files in {images} are not in {where} and are left out")
    names = [image.file_name if in_zip else f"{images}/{image.file_name}" for image in there]
    annotated = {image.number for image in coco.annotated}
    return Listing(
        source_format=source_format,
        split=split,
        classes=coco.classes,
        files=pa.array([images] if in_zip else names, pa.string()),
        file=np.zeros(len(names), np.int32) if in_zip else np.arange(len(names), dtype=np.int32),
        names=pa.array(names, pa.string()),
        keys=sample_keys(names, [""] * len(names)),
        labels=np.zeros(len(names), np.int32),
        offsets=np.array([files[image.file_name][0] for image in there], np.int64),
        sizes=np.array([files[image.file_name][1] for image in there], np.int64),
        documents=pa.array([target_member(coco, image) for image in there], pa.large_binary()),
        has_objects=np.array([image.number in annotated for image in there], np.bool_),
        is_zip=in_zip,
        faults=(*coco.faults, *faults),
        notes=tuple(notes),
    )


def list_files(root: Folder, folder: str, endings: tuple[str, ...] = ()) -> dict[str, Place]:
    """Return the place of each file of a folder, at any depth, by its name below it; hidden files are left out.

    Args:
        root: folder of the source.
        folder: path in it.
        endings: of the names, in lower case; none takes all files.
    """
    base = root.folder(folder)
    return {
        info.path[len(base.path) + 1 :]: (0, info.size)
        for info in base.list(recursive=True)
        if info.type == fs.FileType.File
        and not info.base_name.startswith(".")
        and (not endings or info.base_name.lower().endswith(endings))
    }


def read_files(folder: Folder, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the name of each of many small files of a folder, and its content."""
    names = list(names)
    with ThreadPoolExecutor(_READERS) as pool:
        yield from zip(names, pool.map(folder.read, names), strict=True)


def listed_names(root: Folder) -> list[str] | None:
    """Return the names of the classes that `classes.txt` lists; None without such a file."""
    if root.size(CLASSES) is None:
        return None
    lines = root.read(CLASSES).decode("utf-8-sig", "replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def image_sizes(folder: Folder, names: Iterable[str]) -> dict[str, tuple[int, int] | str]:
    """Return (width, height) of each image by its name in a folder, or what is wrong with it, from the header alone.

    An image that EXIF turns is wrong: labelling tools annotate what they show, and shards hold what is stored.
    """

    def size(name: str) -> tuple[int, int] | str:
        try:
            with folder.open_input(name) as stream, Image.open(stream) as image:
                return "is turned by EXIF: turn its pixels" if _is_turned(image) else image.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return f"is no image: {error}"

    names = list(names)
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(names, pool.map(size, names), strict=True))


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_ORIENTATION, 1) != 1
    except Exception:  # Pillow's EXIF parser raises many kinds of exceptions on damaged bytes
        return False


def keep_annotated(listing: Listing) -> Listing:
    """Return the images with an object that is no crowd, for a training that learns nothing from the others.

    Raises:
        SourceError: the source has no objects, or no image has one.
    """
    if listing.has_objects is None:
        raise SourceError(
            f"--only-annotated is for images with objects; the source is held as {listing.source_format}: leave it out"
        )
    rows = np.flatnonzero(listing.has_objects)
    if not len(rows):
        raise SourceError(f"no image of split {listing.split!r} has an object: leave --only-annotated out")
    note = f"{len(listing) - len(rows):,} images without objects are left out"
    return keep_samples(listing, rows, listing.split, note)
