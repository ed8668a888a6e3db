"""Images with objects in COCO's format: COCO as it is downloaded, or any set that a labelling tool exports.

`coco`: `ROOT/train2017.zip` or the folder `ROOT/train2017`, and `ROOT/annotations_trainval2017.zip` or the folder
`ROOT/annotations` with `instances_train2017.json`; `val2017` in the same way is the validation split.
`coco-json`: for each split an annotation file `ROOT/SPLIT.json`, `ROOT/annotations/SPLIT.json`,
`ROOT/annotations/instances_SPLIT.json` or `ROOT/SPLIT/_annotations.coco.json`, and its images below
`ROOT/images/SPLIT`, `ROOT/SPLIT` or `ROOT/images`.
"""

from __future__ import annotations

from dataclasses import dataclass

from sharding.coco import CocoSet, read_coco
from sharding.errors import SourceError
from sharding.sources.classes import ClassList
from sharding.sources.listing import Listing
from sharding.sources.object_listing import SPLITS, Place, list_files, list_objects
from sharding.storage import Folder
from sharding.zips import list_members, read_member

__all__ = ["find_coco_json_splits", "find_coco_splits", "list_coco", "list_coco_json"]

_YEARS = ("2017", "2014")


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
    for split, names in SPLITS.items():
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
    return list_objects(form, split, coco, _files(root, place.images), place.images, place.annotations)


def _read(root: Folder, place: _Place) -> CocoSet:
    where = f"{root.location}/{place.archive or place.annotations}"
    content = read_member(root, place.archive, place.annotations) if place.archive else root.read(place.annotations)
    if content is None:
        raise SourceError(f"{where} holds no {place.annotations}. Fetch it again.")
    return read_coco(content, place.annotations)


def _files(root: Folder, images: str) -> dict[str, Place]:
    """Offset and size of each image by its name as annotation files have it: below the folder of the split."""
    if images.endswith(".zip"):
        prefix = f"{images.removesuffix('.zip')}/"
        return {member.name.removeprefix(prefix): (member.offset, member.size) for member in list_members(root, images)}
    return {name: place for name, place in list_files(root, images).items() if not name.endswith(".json")}
