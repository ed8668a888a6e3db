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


def find_place(root: Folder, lists: str) -> str | None:
    """Return the path of the folder with `JPEGImages` and lists of the splits, with `/` at its end; None without one.

    The path of the source itself is empty.

    Args:
        root: folder of the source.
        lists: path from there to the lists, `ImageSets/Segmentation` or `ImageSets/Main`.

    Raises:
        SourceError: there are several years.
    """
    found = []
    for prefix in ("", "VOCdevkit/"):
        base = root.folder(prefix.rstrip("/")) if prefix else root
        folders = [info.base_name for info in base.list() if info.type == fs.FileType.Directory]
        if not prefix and _IMAGES in folders:
            return "" if lists_of(root, "", lists) else None
        years = [name for name in folders if name.startswith("VOC2")]
        found += [f"{prefix}{name}/" for name in years if lists_of(base, f"{name}/", lists)]
    if len(found) > 1:
        raise SourceError(f"{root.location} holds several years of VOC ({', '.join(found)}): give one as --source")
    return found[0] if found else None


def lists_of(root: Folder, place: str, lists: str) -> dict[str, str]:
    """Return the path of the list of each split that there is."""
    paths = {split: f"{place}{lists}/{name}" for split, name in _LIST_OF.items()}
    return {split: path for split, path in paths.items() if root.size(path) is not None}


def find_splits(root: Folder) -> list[str]:
    """Find the splits that a list names."""
    place = find_place(root, _LISTS)
    return [] if place is None else list(lists_of(root, place, _LISTS))


def list_voc(root: Folder, split: str, known: ClassList | None) -> Listing:
    """List the images of a split.

    Raises:
        SourceError: there is no such split, or a listed image or its label map is missing.
    """
    if split not in find_splits(root):
        raise SourceError(f"{root.location} has no split {split!r} of VOC: no {_LISTS}/{_LIST_OF.get(split, split)}")
    place = find_place(root, _LISTS) or ""
    listed = {name: stems(root, path) for name, path in lists_of(root, place, _LISTS).items()}
    images = _files(root, f"{place}{_IMAGES}", ".jpg")
    masks = _files(root, f"{place}{_MASKS}", ".png")
    own = listed[split]
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


def stems(root: Folder, path: str) -> set[str]:
    """Return the stems that a list names."""
    return set(root.read(path).decode("utf-8", "replace").split())


def _files(root: Folder, folder: str, end: str) -> dict[str, Place]:
    """Path and size of each file of a folder with an ending, by its stem."""
    return {
        info.base_name.removesuffix(end): (f"{folder}/{info.base_name}", info.size)
        for info in root.folder(folder).list()
        if info.type == fs.FileType.File and info.base_name.endswith(end) and not info.base_name.startswith(".")
    }
