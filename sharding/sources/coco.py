"""Images with objects in COCO's format: COCO as it is downloaded, or any set that a labelling tool exports.

`coco`: `ROOT/train2017.zip` or the folder `ROOT/train2017`, and `ROOT/annotations_trainval2017.zip` or the folder
`ROOT/annotations` with `instances_train2017.json`; `val2017` in the same way is the validation split.
`coco-json`: for each split an annotation file `ROOT/SPLIT.json`, `ROOT/annotations/SPLIT.json`,
`ROOT/annotations/instances_SPLIT.json` or `ROOT/SPLIT/_annotations.coco.json`, and its images below
`ROOT/images/SPLIT`, `ROOT/SPLIT` or `ROOT/images`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import fs

from sharding.coco import CocoImage, CocoSet, read_coco, target_member
from sharding.errors import SourceError
from sharding.sources.classes import ClassList
from sharding.sources.listing import Listing, sample_keys, select_samples
from sharding.sources.zip_members import list_members, read_member
from sharding.storage import Folder

__all__ = ["find_coco_json_splits", "find_coco_splits", "keep_annotated", "list_coco", "list_coco_json"]

_YEARS = ("2017", "2014")
_SPLITS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}


@dataclass(frozen=True)
class _Place:
    """Where a split is.

    Attributes:
        annotations: path of the annotation file in the source.
        archive: zip that holds the annotation file; empty if it lies there by itself.
        images: folder of the images, or the zip that holds them.
    """

    annotations: str
    archive: str
    images: str


def find_coco_splits(root: Folder) -> dict[str, _Place]:
    """Find the splits of COCO."""
    names, found = set(root.names()), {}
    for split, short in (("train", "train"), ("validation", "val")):
        for year in _YEARS:
            stem, file = f"{short}{year}", f"annotations/instances_{short}{year}.json"
            images = next((name for name in (stem, f"{stem}.zip") if name in names), None)
            archive = f"annotations_trainval{year}.zip"
            if images is None or split in found:
                continue
            if root.size(file) is not None:
                found[split] = _Place(file, "", images)
            elif archive in names:
                found[split] = _Place(file, archive, images)
    return found


def find_coco_json_splits(root: Folder) -> dict[str, _Place]:
    """Find the splits of a set in COCO's format."""
    found = {}
    for split, names in _SPLITS.items():
        for name in names:
            files = (f"{name}.json", f"annotations/{name}.json", f"annotations/instances_{name}.json")
            beside = f"{name}/_annotations.coco.json"
            file = next((path for path in (*files, beside) if root.size(path) is not None), None)
            folders = (name,) if file == beside else (f"images/{name}", name, "images")
            images = next((folder for folder in folders if root.folder(folder).exists()), None)
            if file is not None and images is not None and split not in found:
                found[split] = _Place(file, "", images)
    return found


def list_coco(root: Folder, split: str, known: ClassList | None) -> Listing:
    """List a split of COCO.

    Raises:
        SourceError: there is no such split, or its annotation file is wrong.
    """
    return _list(root, split, "coco", find_coco_splits(root))


def list_coco_json(root: Folder, split: str, known: ClassList | None) -> Listing:
    """List a split of a set in COCO's format.

    Raises:
        SourceError: there is no such split, or its annotation file is wrong.
    """
    return _list(root, split, "coco-json", find_coco_json_splits(root))


def _list(root: Folder, split: str, form: str, places: dict[str, _Place]) -> Listing:
    if split not in places:
        raise SourceError(f"{root.location} has no split {split!r}; it has {', '.join(sorted(places)) or 'none'}")
    place = places[split]
    coco = _read(root, place)
    files = _files(root, place.images)
    images, faults = [], list(coco.faults)
    for image in coco.images:
        if image.file_name in files:
            images.append(image)
        else:
            faults.append(f"{place.annotations}: {image.file_name} (image {image.number}) is not in {place.images}")
    unnamed = len(files.keys() - {image.file_name for image in coco.images})
    notes = (f"{unnamed:,} files in {place.images} are not in {place.annotations} and are left out",) if unnamed else ()
    return _listing(form, split, coco, images, files, place, tuple(faults), notes)


def _listing(
    form: str,
    split: str,
    coco: CocoSet,
    images: list[CocoImage],
    files: dict[str, tuple[int, int]],
    place: _Place,
    faults: tuple[str, ...],
    notes: tuple[str, ...],
) -> Listing:
    in_zip = place.images.endswith(".zip")
    names = [image.file_name if in_zip else f"{place.images}/{image.file_name}" for image in images]
    annotated = {image.number for image in coco.annotated}
    return Listing(
        source_format=form,
        split=split,
        classes=coco.classes,
        files=pa.array([place.images] if in_zip else names, pa.string()),
        file=np.zeros(len(names), np.int32) if in_zip else np.arange(len(names), dtype=np.int32),
        names=pa.array(names, pa.string()),
        keys=sample_keys(names, [""] * len(names)),
        labels=np.zeros(len(names), np.int32),
        offsets=np.array([files[image.file_name][0] for image in images], np.int64),
        sizes=np.array([files[image.file_name][1] for image in images], np.int64),
        documents=pa.array([target_member(coco, image) for image in images], pa.large_binary()),
        has_objects=np.array([image.number in annotated for image in images], np.bool_),
        is_zip=in_zip,
        faults=faults,
        notes=notes,
    )


def _read(root: Folder, place: _Place) -> CocoSet:
    where = f"{root.location}/{place.archive or place.annotations}"
    content = read_member(root, place.archive, place.annotations) if place.archive else root.read(place.annotations)
    if content is None:
        raise SourceError(f"{where} holds no {place.annotations}. Fetch it again.")
    return read_coco(content, place.annotations)


def _files(root: Folder, images: str) -> dict[str, tuple[int, int]]:
    """Offset and size of each image by its name as annotation files have it: below the folder of the split."""
    if images.endswith(".zip"):
        prefix = f"{images.removesuffix('.zip')}/"
        return {member.name.removeprefix(prefix): (member.offset, member.size) for member in list_members(root, images)}
    base = root.folder(images)
    return {
        info.path[len(base.path) + 1 :]: (0, info.size)
        for info in base.list(recursive=True)
        if info.type == fs.FileType.File and not info.base_name.startswith(".") and info.base_name[-5:] != ".json"
    }


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
    return dataclasses.replace(
        select_samples(listing, rows), classes=listing.classes, notes=(*listing.notes, note), faults=listing.faults
    )
