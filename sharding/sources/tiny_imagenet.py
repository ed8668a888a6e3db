"""Tiny ImageNet: `train/WNID/images/*.JPEG`, `val/images/*.JPEG` with `val/val_annotations.txt`, an unlabelled test."""

from __future__ import annotations

from pyarrow import fs

from sharding.errors import SourceError
from sharding.manifest import ClassInfo
from sharding.sources.annotated import list_annotated
from sharding.sources.classes import ClassList
from sharding.sources.folder import EXTENSIONS, list_class_folders
from sharding.sources.listing import Listing
from sharding.storage import Folder

ANNOTATIONS = "val_annotations.txt"
WNIDS = "wnids.txt"
WORDS = "words.txt"
_PREFIXES = {"train": "train/", "validation": "val/"}


def find_splits(root: Folder) -> list[str]:
    """Find the splits of Tiny ImageNet in `root`; none without its table of the validation images."""
    if root.folder("val").size(ANNOTATIONS) is None:
        return []
    there = {info.base_name for info in root.list() if info.type == fs.FileType.Directory}
    return [split for split, prefix in _PREFIXES.items() if prefix.rstrip("/") in there]


def list_tiny_imagenet(
    root: Folder, split: str, known: ClassList | None, *, extensions: tuple[str, ...] = EXTENSIONS
) -> Listing:
    """List the images of a split of Tiny ImageNet.

    Args:
        root: folder of the source.
        split: `train` or `validation`.
        known: the classes of --classes; None uses wnids.txt and words.txt, or the folders of the training split.
        extensions: endings of the names of images, in lower case.

    Raises:
        SourceError: there is no such split, or the table of the validation images contradicts them.
    """
    if split not in find_splits(root):
        raise SourceError(f"Tiny ImageNet in {root.location} has no labelled split {split!r}; it has train and val")
    classes = known or _classes(root)
    if split == "train":
        return list_class_folders(root, "train/", split, classes, source_format="tiny-imagenet", extensions=extensions)
    rows = [line.split("\t") for line in root.folder("val").read(ANNOTATIONS).decode("utf-8", "replace").splitlines()]
    wrong = next((row for row in rows if len(row) < 2), None)
    if wrong is not None:
        raise SourceError(f"{root.location}/val/{ANNOTATIONS}: the line {' '.join(wrong)[:60]!r} has no class")
    classes_of = {row[0].rpartition(".")[0]: row[1].strip() for row in rows}
    return list_annotated(
        root, "val/", classes_of, classes, source_format="tiny-imagenet", table=ANNOTATIONS, extensions=extensions
    )


def _classes(root: Folder) -> ClassList:
    """The classes in the order of their WordNet ids; words.txt names all of WordNet, of which wnids.txt selects."""
    if root.size(WNIDS) is not None:
        wnids = sorted(set(root.read(WNIDS).decode("utf-8", "replace").split()))
    else:
        wnids = sorted(info.base_name for info in root.folder("train").list() if info.type == fs.FileType.Directory)
    names: dict[str, str] = {}
    if root.size(WORDS) is not None:
        for line in root.read(WORDS).decode("utf-8", "replace").splitlines():
            wnid, _, name = line.partition("\t")
            names[wnid] = name.strip()
    return ClassList(tuple(ClassInfo(wnid, names.get(wnid) or wnid) for wnid in wnids), WNIDS)
