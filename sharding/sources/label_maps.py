"""Images beside label maps: the folder of ADE20K as it is downloaded, or `images/SPLIT` beside `masks/SPLIT`.

`masks`: `ROOT/images/SPLIT/NAME.jpg`, `ROOT/masks/SPLIT/NAME.png` and `ROOT/classes.json`, which maps the value of the
pixels of each class to its name, such as `{"0": "background", "1": "cat"}`, and may have `"ignore_index"` (else 255).
`ade20k`: `ROOT/images/training/NAME.jpg`, `ROOT/annotations/training/NAME.png`, where 1 to 150 are the classes and 0 is
none; their names are in `ROOT/objectInfo150.txt`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

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
        content = dict(json.loads(root.read(CLASSES)))
        ignored = int(content.pop("ignore_index", _IGNORED))
        names = {int(value): str(name) for value, name in content.items()}
    except (ValueError, TypeError) as error:
        raise SourceError(f"{where} is no JSON object of values and names: {error}") from error
    values = tuple(sorted(names))
    if not values or len(values) > _MOST or not 0 <= min(values) <= max(values) <= 255 or ignored in names:
        raise SourceError(
            f"{where} names {len(values)} classes with values {min(values, default=0)} to {max(values, default=0)}, "
            f"and {ignored} is ignored: 1 to {_MOST} classes with other values from 0 to 255 are possible"
        )
    classes = tuple(ClassInfo(str(value), names[value]) for value in values)
    return classes, LabelMaps(values, ignored)


def _list(root: Folder, split: str, form: _Form, classes: tuple[ClassInfo, ...], maps: LabelMaps) -> Listing:
    splits = _splits(root, form)
    if split not in splits:
        raise SourceError(f"{root.location} has no split {split!r}; it has {', '.join(sorted(splits)) or 'none'}")
    images = _files(root, f"images/{splits[split]}", EXTENSIONS)
    masks = _files(root, f"{form.masks}/{splits[split]}", (".png",))
    for lonely, there, what in ((images, masks, "no label map"), (masks, images, "no image")):
        alone = sorted(lonely.keys() - there.keys())
        if alone:
            more = f", and {len(alone) - 1} more" if len(alone) > 1 else ""
            raise SourceError(f"{lonely[alone[0]][0]} has {what} with the same stem{more}: add or remove files")
    stems = sorted(images)
    names = [images[stem][0] for stem in stems]
    return Listing(
        source_format=form.name,
        split=split,
        classes=classes,
        files=pa.array(names, pa.string()),
        file=np.arange(len(stems), dtype=np.int32),
        names=pa.array(names, pa.string()),
        keys=sample_keys(names, [""] * len(names)),
        labels=np.zeros(len(stems), np.int32),
        offsets=np.zeros(len(stems), np.int64),
        sizes=np.array([images[stem][1] for stem in stems], np.int64),
        targets=pa.array([masks[stem][0] for stem in stems], pa.string()),
        target_sizes=np.array([masks[stem][1] for stem in stems], np.int64),
        label_maps=maps,
    )


def _files(root: Folder, folder: str, extensions: tuple[str, ...]) -> dict[str, tuple[str, int]]:
    """Path and size of each file of a folder by its stem; hidden files are left out."""
    found: dict[str, tuple[str, int]] = {}
    for info in root.folder(folder).list():
        name = info.base_name
        if info.type != fs.FileType.File or name.startswith(".") or not name.lower().endswith(extensions):
            continue
        stem = name.rpartition(".")[0]
        if stem in found:
            raise SourceError(f"{folder}/{name} and {found[stem][0]} have the same stem: rename or remove one")
        found[stem] = (f"{folder}/{name}", info.size)
    return found
