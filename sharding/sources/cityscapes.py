"""Cityscapes as it is downloaded: `leftImg8bit_trainvaltest.zip` and `gtFine_trainvaltest.zip`, unpacked in one folder.

`leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png` beside `gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png`. Of its 34 ids, 19 are
classes; the others, and pixels with 255, belong to none. The label maps of the test split are withheld.
"""

from __future__ import annotations

from pyarrow import fs

from sharding.errors import SourceError
from sharding.label_maps import LabelMaps
from sharding.manifest import ClassInfo
from sharding.sources.classes import ClassList
from sharding.sources.label_maps import Place, pair_label_maps
from sharding.sources.listing import Listing
from sharding.storage import Folder

IMAGES, MASKS = "leftImg8bit", "gtFine"
_IMAGE_END, _MASK_END = "_leftImg8bit.png", "_gtFine_labelIds.png"
_FOLDER_OF = {"train": "train", "validation": "val"}
# Ids and names of the 19 classes that are evaluated, from cityscapesscripts/helpers/labels.py.
CLASSES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
_IGNORED = 255
_VOID = tuple(sorted(set(range(34)) - set(CLASSES)))


def find_splits(root: Folder) -> list[str]:
    """Find the splits that have images and label maps."""
    return [
        split
        for split, folder in _FOLDER_OF.items()
        if all(root.folder(kind).folder(folder).exists() for kind in (IMAGES, MASKS))
    ]


def list_cityscapes(root: Folder, split: str, known: ClassList | None) -> Listing:
    """List the images of a split.

    Raises:
        SourceError: there is no such split, or an image or a label map is alone.
    """
    if split not in find_splits(root):
        raise SourceError(
            f"{root.location} has no split {split!r} of Cityscapes: both {IMAGES}/{_FOLDER_OF.get(split, split)} and "
            f"{MASKS}/{_FOLDER_OF.get(split, split)} must be there. The label maps of test are withheld."
        )
    images = _files(root, f"{IMAGES}/{_FOLDER_OF[split]}", _IMAGE_END)
    masks = _files(root, f"{MASKS}/{_FOLDER_OF[split]}", _MASK_END)
    classes = tuple(ClassInfo(str(number), name) for number, name in CLASSES.items())
    return pair_label_maps("cityscapes", split, images, masks, classes, LabelMaps(tuple(CLASSES), _IGNORED, _VOID))


def _files(root: Folder, folder: str, end: str) -> dict[str, Place]:
    """Path and size of each file below a folder whose name ends in `end`, by the name before it."""
    base = root.folder(folder)
    return {
        info.base_name.removesuffix(end): (f"{folder}/{info.path[len(base.path) + 1 :]}", info.size)
        for info in base.list(recursive=True)
        if info.type == fs.FileType.File and info.base_name.endswith(end) and not info.base_name.startswith(".")
    }
