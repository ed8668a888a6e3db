"""Finds out in which form a source is held, split by split."""

from __future__ import annotations

from typing import Literal, get_args

from pyarrow import fs

from sharding.errors import SourceError
from sharding.sources import folder as class_folders
from sharding.sources import ilsvrc
from sharding.sources.classes import find_class_list
from sharding.sources.listing import Listing
from sharding.storage import Folder

SourceFormat = Literal["ilsvrc", "folder"]
SOURCE_FORMATS: tuple[SourceFormat, ...] = get_args(SourceFormat)


def open_source(location: str) -> Folder:
    """Open the folder of a source; an archive's own path stands for the folder it is in.

    Raises:
        SourceError: there is nothing at this place.
    """
    root = Folder.open(location)
    kind = root.filesystem.get_file_info(root.path).type
    if kind == fs.FileType.File:
        root = Folder.open(location.rpartition("/")[0] or ".")
    elif kind != fs.FileType.Directory:
        raise SourceError(f"the source {location!r} does not exist. Give the folder that holds ImageNet with --source.")
    return root


def find_splits(root: Folder, source_format: SourceFormat | None) -> dict[str, SourceFormat]:
    """The splits of a source and the form each is held in; archives go before folders."""
    found: dict[str, SourceFormat] = {}
    if source_format in (None, "folder"):
        found.update(dict.fromkeys(class_folders.find_splits(root), "folder"))
    if source_format in (None, "ilsvrc"):
        names = root.names()
        found.update({split: "ilsvrc" for split, archive in ilsvrc.ARCHIVES.items() if archive in names})
    return found


def list_splits(location: str, source_format: SourceFormat | None = None) -> list[str]:
    """The splits a source holds.

    Raises:
        SourceError: the source is missing, or does not say which split it is.
    """
    root = open_source(location)
    found = find_splits(root, source_format)
    if not found:
        raise SourceError(
            f"{location!r} holds no split that can be recognised: no {' or '.join(ilsvrc.ARCHIVES.values())}, no "
            "folder train or val. If it holds class folders of one split, say which: --split train"
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
        classes: file of `WNID NAME` lines that gives the labels; None takes what the source has.

    Raises:
        SourceError: the source does not hold such a split, is damaged, or contradicts itself.
    """
    root = open_source(location)
    known = find_class_list(root, classes)
    form = find_splits(root, source_format).get(split, source_format or "folder")
    listing = (
        ilsvrc.list_archive(root, split, known) if form == "ilsvrc" else class_folders.list_folder(root, split, known)
    )
    listing.check()
    return listing
