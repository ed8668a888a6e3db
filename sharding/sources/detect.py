"""Finds out in which form a source is held, split by split."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from typing import Literal, get_args

from pyarrow import fs

from sharding.errors import SourceError
from sharding.labels import agree
from sharding.sources import folder as class_folders
from sharding.sources import ilsvrc, kaggle, parquet
from sharding.sources.classes import ClassList, find_class_list
from sharding.sources.devkit import read_devkit
from sharding.sources.listing import Listing
from sharding.storage import Folder

SourceFormat = Literal["ilsvrc", "kaggle", "parquet", "folder"]
SOURCE_FORMATS: tuple[SourceFormat, ...] = get_args(SourceFormat)


def open_source(location: str) -> Folder:
    """Open the folder of a source; an archive's own path stands for the folder it is in.

    Raises:
        SourceError: there is nothing at this place, or a file that no form of ImageNet has.
    """
    root = Folder.open(location)
    kind = root.filesystem.get_file_info(root.path).type
    if kind == fs.FileType.File:
        root, name = Folder.holding(location)
        if name not in ilsvrc.ARCHIVES.values() and not name.endswith(".parquet"):
            raise SourceError(
                f"the source {location!r} is a file that is none of ImageNet's archives "
                f"({', '.join(ilsvrc.ARCHIVES.values())}). Give the folder that holds the images."
            )
    elif kind != fs.FileType.Directory:
        raise SourceError(f"the source {location!r} does not exist. Give the folder that holds ImageNet with --source.")
    return root


def find_splits(root: Folder, source_format: SourceFormat | None) -> dict[str, SourceFormat]:
    """The splits of a source and the form each is held in: of several, the first of `SOURCE_FORMATS`."""
    finders: dict[SourceFormat, Callable[[Folder], Iterable[str]]] = {
        "ilsvrc": ilsvrc.find_splits,
        "kaggle": kaggle.find_splits,
        "parquet": parquet.find_splits,
        "folder": class_folders.find_splits,
    }
    found: dict[str, SourceFormat] = {}
    for form, find in finders.items():
        if source_format in (None, form):
            found = {**dict.fromkeys(find(root), form), **found}
    return found


def list_splits(location: str, source_format: SourceFormat | None = None) -> list[str]:
    """The splits a source holds.

    Raises:
        SourceError: the source is missing, or does not say which split it is.
    """
    root = open_source(location)
    found = find_splits(root, source_format)
    archives = {archive: split for split, archive in ilsvrc.ARCHIVES.items()}
    name = location.partition("?")[0].rpartition("/")[2]
    if name in archives and archives[name] in found:
        return [archives[name]]
    if not found and source_format is not None:
        raise SourceError(
            f"{location!r} holds no split in the form {source_format!r}. Give another --source or --source-format, or "
            "none, and the form is found out."
        )
    if not found:
        raise SourceError(
            f"{location!r} holds no split that can be recognised: no {' or '.join(ilsvrc.ARCHIVES.values())}, no "
            "parquet files train-*.parquet, no folder train or val. "
            "If it holds class folders of one split, say which: --split train"
        )
    return sorted(found)


def list_split(
    location: str, split: str, source_format: SourceFormat | None = None, classes: str | None = None
) -> Listing:
    """List the images of one split.

    Args:
        location: folder or URI of the source.
        split: such as `train` or `validation`.
        source_format: to read it as; None looks.
        classes: file of `WNID NAME` lines that gives the labels; None takes what lies with the source.

    Raises:
        SourceError: the source does not hold such a split, is damaged, or contradicts itself.
    """
    root = open_source(location)
    form = find_splits(root, source_format).get(split, source_format or "folder")
    known = _known_classes(root, form, classes)
    readers: dict[SourceFormat, Callable[[Folder, str, ClassList | None], Listing]] = {
        "ilsvrc": ilsvrc.list_archive,
        "kaggle": kaggle.list_kaggle,
        "parquet": parquet.list_parquet,
        "folder": class_folders.list_folder,
    }
    listing = readers[form](root, split, known)
    listing.check()
    return dataclasses.replace(listing, classes_found=known is None and form in ("folder", "parquet"))


def list_source(
    location: str, split: str | None, source_format: SourceFormat | None = None, classes: str | None = None
) -> list[Listing]:
    """List the splits to pack, with labels that agree among all splits of the source.

    Args:
        location: folder or URI of the source.
        split: the one to pack; None packs all.
        source_format: to read it as; None looks.
        classes: see `list_split`.

    Raises:
        SourceError: see `list_split` and `agree`.
    """
    alias = {name: of for of, names in class_folders.SPLIT_FOLDERS.items() for name in names}
    wanted = list_splits(location, source_format) if split is None else [alias.get(split, split)]
    listings = [list_split(location, name, source_format, classes) for name in wanted]
    others = []
    if any(listing.classes_found for listing in listings):
        for name in find_splits(open_source(location), source_format).keys() - set(wanted):
            with contextlib.suppress(SourceError):  # said when it is packed, and its labels are compared then
                others.append(list_split(location, name, source_format, classes))
    return agree(listings, sorted(others, key=lambda listing: listing.split))


def _known_classes(root: Folder, form: SourceFormat, given: str | None) -> ClassList | None:
    """The classes the user gave; or a mapping or, for images in folders, the development kit that lies with them.

    A source that is one split's folder, such as `imagenet/train`, may have them beside it.
    """
    known = find_class_list(root, given)
    places = [root]
    beside, name = Folder.holding(root.location)
    if name in class_folders.ALL_SPLIT_FOLDERS:
        places.append(beside)
        known = known or find_class_list(beside, None)
    if known is None and form in ("kaggle", "folder"):
        kits = (read_devkit(place) for place in places)
        known = next((kit.classes for kit in kits if kit is not None), None)
    return known
