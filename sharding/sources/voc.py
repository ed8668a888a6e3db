"""Pascal VOC as it is downloaded: `VOCdevkit/VOC2012` with `JPEGImages`, `SegmentationClass` and `ImageSets`.

`ImageSets/Segmentation/{train,val}.txt` list the images of a split, a stem a line; most images of `JPEGImages` are in
neither. The label maps are palette PNGs: 0 is the background, 1 to 20 are the objects, 255 is the border around them.
"""

from __future__ import annotations

import dataclasses

from pyarrow import fs

from sharding.errors import SourceError
from sharding.label_maps import LabelMaps
from sharding.manifest import ClassInfo
from sharding.sources.classes import ClassList
from sharding.sources.label_maps import Place, pair_label_maps
from sharding.sources.listing import Listing
from sharding.storage import Folder

_LISTS = "ImageSets/Segmentation"
_LIST_OF = {"train": "train.txt", "validation": "val.txt"}
_IMAGES, _MASKS = "JPEGImages", "SegmentationClass"
# The order of the devkit, which is that of the colours in the palettes.
CLASSES = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
_BORDER = 255


def _place(root: Folder) -> str | None:
    """Path of the folder with `JPEGImages`, with `/` at its end unless it is the source itself; None if there is none.

    Raises:
        SourceError: there are several years.
    """
    found = []
    for prefix in ("", "VOCdevkit/"):
        base = root.folder(prefix.rstrip("/")) if prefix else root
        folders = [info.base_name for info in base.list() if info.type == fs.FileType.Directory]
        if not prefix and _IMAGES in folders:
            return "" if _has_lists(root) else None
        found += [f"{prefix}{name}/" for name in folders if name.startswith("VOC2") and _has_lists(base.folder(name))]
    if len(found) > 1:
        raise SourceError(f"{root.location} holds several years of VOC ({', '.join(found)}): give one as --source")
    return found[0] if found else None


def _has_lists(folder: Folder) -> bool:
    return any(folder.folder(_LISTS).size(name) is not None for name in _LIST_OF.values())


def find_splits(root: Folder) -> list[str]:
    """Find the splits that a list names."""
    place = _place(root)
    if place is None:
        return []
    return [split for split, name in _LIST_OF.items() if root.size(f"{place}{_LISTS}/{name}") is not None]


def list_voc(root: Folder, split: str, known: ClassList | None) -> Listing:
    """List the images of a split.

    Raises:
        SourceError: there is no such split, or a listed image or its label map is missing.
    """
    if split not in find_splits(root):
        raise SourceError(f"{root.location} has no split {split!r} of VOC: no {_LISTS}/{_LIST_OF.get(split, split)}")
    place = _place(root) or ""
    listed = {name: _stems(root, f"{place}{_LISTS}/{name}") for name in map(_LIST_OF.__getitem__, find_splits(root))}
    images = _files(root, f"{place}{_IMAGES}", ".jpg")
    masks = _files(root, f"{place}{_MASKS}", ".png")
    own = listed[_LIST_OF[split]]
    for there, folder, end in ((images, _IMAGES, ".jpg"), (masks, _MASKS, ".png")):
        missing = sorted(own - there.keys())
        if missing:
            more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise SourceError(
                f"{place}{folder}/{missing[0]}{end} is missing{more}, which {_LISTS}/{_LIST_OF[split]} lists: restore "
                "it, or remove its line"
            )
    classes = tuple(ClassInfo(str(number), name) for number, name in enumerate(CLASSES))
    listing = pair_label_maps(
        "voc",
        split,
        {stem: images[stem] for stem in own},
        {stem: masks[stem] for stem in own},
        classes,
        LabelMaps(tuple(range(len(CLASSES))), _BORDER),
    )
    unlisted = masks.keys() - set().union(*listed.values())
    if not unlisted:
        return listing
    note = f"{len(unlisted):,} label maps are in no list of {_LISTS} and are left out, such as {min(unlisted)}.png"
    return dataclasses.replace(listing, notes=(*listing.notes, note))


def _stems(root: Folder, path: str) -> set[str]:
    return set(root.read(path).decode("utf-8", "replace").split())


def _files(root: Folder, folder: str, end: str) -> dict[str, Place]:
    """Path and size of each file of a folder with an ending, by its stem."""
    return {
        info.base_name.removesuffix(end): (f"{folder}/{info.base_name}", info.size)
        for info in root.folder(folder).list()
        if info.type == fs.FileType.File and info.base_name.endswith(end) and not info.base_name.startswith(".")
    }
