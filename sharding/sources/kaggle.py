"""ImageNet in Kaggle's CLS-LOC layout: class folders for training, one flat folder and a table for validation."""

from __future__ import annotations

import csv
import io

from pyarrow import fs

from sharding.errors import SourceError
from sharding.sources.annotated import list_annotated
from sharding.sources.classes import SYNSET_MAPPING, ClassList
from sharding.sources.folder import EXTENSIONS, has_folders, list_class_folders
from sharding.sources.listing import Listing
from sharding.storage import Folder

SOLUTION = "LOC_val_solution.csv"
_DATA_FOLDERS = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC", "CLS-LOC")
_SPLIT_FOLDERS = {"train": "train", "validation": "val"}


def find_splits(root: Folder) -> dict[str, str]:
    """Find the splits of Kaggle's layout in `root`: path of the folder, with `/` at its end, by split."""
    for data in _DATA_FOLDERS:
        there = {info.base_name for info in root.folder(data).list() if info.type == fs.FileType.Directory}
        if there:
            return {split: f"{data}/{name}/" for split, name in _SPLIT_FOLDERS.items() if name in there}
    return {}


def list_kaggle(
    root: Folder, split: str, known: ClassList | None, *, extensions: tuple[str, ...] = EXTENSIONS
) -> Listing:
    """List the images of a split in Kaggle's layout.

    Args:
        root: folder of the source.
        split: `train` or `validation`.
        known: all classes, of LOC_synset_mapping.txt or of --classes.
        extensions: endings of the names of images, in lower case.

    Raises:
        SourceError: the split or one of the tables is missing, or a table contradicts the images.
    """
    prefix = find_splits(root).get(split)
    if prefix is None:
        raise SourceError(
            f"{root.location} has no labelled split {split!r} in {_DATA_FOLDERS[0]}; there are train and val"
        )
    if known is None:
        raise SourceError(
            f"{root.location}/{SYNSET_MAPPING} is missing: it gives the labels. Put it there, or use --classes."
        )
    if split == "train":
        return list_class_folders(root, prefix, split, known, source_format="kaggle", extensions=extensions)
    if root.size(SOLUTION) is None and has_folders(root.folder(prefix.rstrip("/"))):
        return list_class_folders(root, prefix, split, known, source_format="kaggle", extensions=extensions)
    return list_annotated(
        root, prefix, _read_solution(root), known, source_format="kaggle", table=SOLUTION, extensions=extensions
    )


def _read_solution(root: Folder) -> dict[str, str]:
    """Read the WordNet id of each validation image, by file name without extension.

    A line is `ILSVRC2012_val_00048981,n03995372 85 1 499 272 …`: the class and a box, repeated for each object.
    """
    if root.size(SOLUTION) is None:
        raise SourceError(f"{root.location}/{SOLUTION} is missing: it holds the classes of the validation images")
    text = root.read(SOLUTION).decode("utf-8", "replace")
    wnids = {}
    for row in list(csv.reader(io.StringIO(text)))[1:]:
        if len(row) < 2 or not row[1].split():
            raise SourceError(f"{root.location}/{SOLUTION}: the line {','.join(row)[:60]!r} has no class")
        wnids[row[0]] = row[1].split()[0]
    return wnids
