"""Images beside label maps: the folder of ADE20K as it is downloaded, or `images/SPLIT` beside `masks/SPLIT`.

`masks`: `ROOT/images/SPLIT/NAME.jpg`, `ROOT/masks/SPLIT/NAME.png` and `ROOT/classes.json`, which maps the value of the
pixels of each class to its name, such as `{"0": "background", "1": "cat"}`, and may have `"ignore_index"` (else 255).
A list of names stands for the values from 0.
Where label maps are in colour, a class is `{"name": "cat", "color": [0, 128, 0]}`, and `"ignore_color"` may be given.
`ade20k`: `ROOT/images/training/NAME.jpg`, `ROOT/annotations/training/NAME.png`, where 1 to 150 are the classes and 0 is
none; their names are in `ROOT/objectInfo150.txt`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from sharding.errors import SourceError
from sharding.label_maps import LabelMaps
from sharding.manifest import ClassInfo
from sharding.sources.classes import ClassList
from sharding.sources.folder import EXTENSIONS
from sharding.sources.listing import Listing, sample_keys
from sharding.storage import Folder

CLASSES = "classes.json"
OBJECTS = "objectInfo150.txt"
_IGNORED = 255
_MOST = 254
_FORM_OF_CLASSES = (
    'Write {"0": "road", "1": "sky"}; or, for label maps in colour, {"0": {"name": "road", "color": [128, 64, 128]}}, '
    'with the colour of pixels without a class as "ignore_color".'
)

Place = tuple[str, int]
"""Path of a file in the source, and its size in bytes."""


@dataclass(frozen=True)
class _Form:
    """Where a form keeps its label maps, and the names that the folders of its splits may have."""

    name: str
    masks: str
    splits: dict[str, tuple[str, ...]]


MASKS = _Form(
    "masks", "masks", {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test",)}
)
ADE20K = _Form("ade20k", "annotations", {"train": ("training",), "validation": ("validation",)})


def _splits(root: Folder, form: _Form) -> dict[str, str]:
    """Find the splits that have images and label maps: name of the folder by split."""
    top = {info.base_name for info in root.list() if info.type == fs.FileType.Directory}
    if not {"images", form.masks} <= top:
        return {}
    images = {info.base_name for info in root.folder("images").list() if info.type == fs.FileType.Directory}
    masks = {info.base_name for info in root.folder(form.masks).list() if info.type == fs.FileType.Directory}
    found = {}
    for split, names in form.splits.items():
        matching = [name for name in names if name in images and name in masks]
        if matching:
            found[split] = matching[0]
    return found


def find_mask_splits(root: Folder) -> dict[str, str]:
    """Find the splits of `images/SPLIT` beside `masks/SPLIT`."""
    return _splits(root, MASKS)


def find_ade20k_splits(root: Folder) -> dict[str, str]:
    """Find the splits of ADE20K's folder."""
    return _splits(root, ADE20K)


def list_masks(root: Folder, split: str, known: ClassList | None) -> Listing:
    """List `images/SPLIT` beside `masks/SPLIT`.

    Raises:
        SourceError: `classes.json` is missing or wrong, or an image or a label map is alone.
    """
    classes, maps = _read_classes(root)
    return _list(root, split, MASKS, classes, maps)


def list_ade20k(root: Folder, split: str, known: ClassList | None) -> Listing:
    """List ADE20K.

    Raises:
        SourceError: an image or a label map is alone.
    """
    names = [f"class {number}" for number in range(1, 151)]
    if root.size(OBJECTS) is not None:
        lines = [line.split("\t") for line in root.read(OBJECTS).decode("utf-8", "replace").splitlines()[1:] if line]
        if len(lines) != len(names):
            raise SourceError(f"{root.location}/{OBJECTS} names {len(lines)} classes, ADE20K has {len(names)}")
        names = [fields[-1].strip() for fields in lines]
    classes = tuple(ClassInfo(str(number), name) for number, name in enumerate(names, 1))
    return _list(root, split, ADE20K, classes, LabelMaps(tuple(range(1, 151)), 0))


def _read_classes(root: Folder) -> tuple[tuple[ClassInfo, ...], LabelMaps]:
    where = f"{root.location}/{CLASSES}"
    if root.size(CLASSES) is None:
        raise SourceError(
            f'{where} is missing: write each class there, its name by the value of its pixels, as in {{"0": "road"}}'
        )
    try:
        loaded = json.loads(root.read(CLASSES))
        content: dict[Any, Any] = dict(enumerate(loaded)) if isinstance(loaded, list) else dict(loaded)
        ignored = int(content.pop("ignore_index", _IGNORED))
        colours = {ignored: content.pop("ignore_color")} if "ignore_color" in content else {}
        names: dict[int, str] = {}
        for value, entry in content.items():
            names[int(value)] = str(entry["name"] if isinstance(entry, dict) else entry)
            if isinstance(entry, dict) and "color" in entry:
                colours[int(value)] = entry["color"]
        palette = tuple((value, _colour(colours[value])) for value in sorted(colours))
    except (ValueError, TypeError, LookupError) as error:
        raise SourceError(
            f"{where} is no JSON object of values and names, and no list of names: {error}. {_FORM_OF_CLASSES}"
        ) from error
    values = tuple(sorted(names))
    if not values or len(values) > _MOST or not 0 <= min(values) <= max(values) <= 255 or ignored in names:
        raise SourceError(
            f"{where} names {len(values)} classes with values {min(values, default=0)} to {max(values, default=0)}, "
            f"and {ignored} is ignored: 1 to {_MOST} classes with other values from 0 to 255 are possible"
        )
    lacking = sorted(set(values) - set(colours)) if colours else []
    if lacking or len({colour for _, colour in palette}) < len(palette):
        what = f"class {lacking[0]} has no colour" if lacking else "two classes have the same colour"
        raise SourceError(f"{where}: {what}. Give each class a colour of its own, or none to any.")
    classes = tuple(ClassInfo(str(value), names[value]) for value in values)
    return classes, LabelMaps(values, ignored, colours=palette)


def _colour(given: Any) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255 each.

    Raises:
        ValueError: it is no list of three such numbers.
    """
    values = [int(value) for value in given] if isinstance(given, list) else []
    if len(values) != 3 or not all(0 <= value <= 255 for value in values):
        raise ValueError(f"the colour {given} is not red, green and blue from 0 to 255")
    return values[0], values[1], values[2]


def _list(root: Folder, split: str, form: _Form, classes: tuple[ClassInfo, ...], maps: LabelMaps) -> Listing:
    splits = _splits(root, form)
    if split not in splits:
        raise SourceError(f"{root.location} has no split {split!r}; it has {', '.join(sorted(splits)) or 'none'}")
    images = _files(root, f"images/{splits[split]}", EXTENSIONS)
    masks = _files(root, f"{form.masks}/{splits[split]}", (".png",))
    listing = pair_label_maps(form.name, split, images, masks, classes, maps)
    if not maps.colours:
        return listing
    note = f"label maps in colour are packed as gray PNGs with the values of {CLASSES}"
    return dataclasses.replace(listing, notes=(note,))


def pair_label_maps(
    source_format: str,
    split: str,
    images: Mapping[str, Place],
    masks: Mapping[str, Place],
    classes: tuple[ClassInfo, ...],
    maps: LabelMaps,
) -> Listing:
    """List images with the label maps of the same stems.

    Args:
        source_format: name of the form of the source.
        split: name of the split.
        images: place of each image by its stem, from which its key is made.
        masks: place of each label map by its stem.
        classes: the classes, in the order of `maps.class_values`.
        maps: the values that the pixels of the label maps may have.

    Raises:
        SourceError: an image or a label map is alone.
    """
    for lonely, there, what in ((images, masks, "no label map"), (masks, images, "no image")):
        alone = sorted(lonely.keys() - there.keys())
        if alone:
            more = f", and {len(alone) - 1} more" if len(alone) > 1 else ""
            raise SourceError(f"{lonely[alone[0]][0]} has {what} with the same stem{more}: add or remove files")
    stems = sorted(images)
    names = pa.array([images[stem][0] for stem in stems], pa.string())
    return Listing(
        source_format=source_format,
        split=split,
        classes=classes,
        files=names,
        file=np.arange(len(stems), dtype=np.int32),
        names=names,
        keys=sample_keys([_named(images[stem][0], stem) for stem in stems], [""] * len(stems)),
        labels=np.zeros(len(stems), np.int32),
        offsets=np.zeros(len(stems), np.int64),
        sizes=np.array([images[stem][1] for stem in stems], np.int64),
        targets=pa.array([masks[stem][0] for stem in stems], pa.string()),
        target_sizes=np.array([masks[stem][1] for stem in stems], np.int64),
        label_maps=maps,
    )


def _named(path: str, stem: str) -> str:
    """The path of an image with another stem."""
    return f"{path.rpartition('/')[0]}/{stem}.{path.rpartition('.')[2]}"


def _files(root: Folder, folder: str, extensions: tuple[str, ...]) -> dict[str, Place]:
    """Path and size of each file of a folder by its stem; hidden files are left out."""
    found: dict[str, Place] = {}
    for info in root.folder(folder).list():
        name = info.base_name
        if info.type != fs.FileType.File or name.startswith(".") or not name.lower().endswith(extensions):
            continue
        stem = name.rpartition(".")[0]
        if stem in found:
            raise SourceError(f"{folder}/{name} and {found[stem][0]} have the same stem: rename or remove one")
        found[stem] = (f"{folder}/{name}", info.size)
    return found
