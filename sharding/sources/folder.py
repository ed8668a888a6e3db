"""Class folders: `ROOT/train/CLASS/*.JPEG`, or `ROOT/CLASS/*.JPEG` for the split that the user names."""

from __future__ import annotations

import os

import numpy as np
import pyarrow as pa
from pyarrow import fs

from sharding.errors import SourceError
from sharding.manifest import ClassInfo
from sharding.sources.classes import ClassList
from sharding.sources.listing import Listing, sample_keys
from sharding.storage import Folder

EXTENSIONS = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
SPLIT_OF = {folder: split for split, folders in SPLIT_FOLDERS.items() for folder in folders}
_NOT_A_CLASS = frozenset({"images", "image", "imgs", "img", "jpegimages", "data"})
_OF_TARGETS = frozenset(
    {"masks", "mask", "labels", "label", "annotations", "annotation", "segmentation", "segmentations", "gt"}
    | {"segmentationclass", "segmentationobject", "groundtruth", "ground_truth", "targets", "label_maps"}
)
# Folders of thumbnails, deleted files and metadata that operating systems make; besides those that begin with a dot.
_SYSTEM_FOLDERS = frozenset(
    {"__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found"}
)


def is_hidden_folder(name: str) -> bool:
    """Whether a folder is hidden or belongs to the operating system, so that its images are none of the data set."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def split_folders(split: str) -> tuple[str, ...]:
    """Possible names of a split's folder."""
    return SPLIT_FOLDERS.get(split, (split,))


def find_splits(root: Folder) -> dict[str, str]:
    """Find the split folders inside `root`: folder name by split; ignores a `test` folder without class folders.

    A folder `train` beside class folders is a class if it has no folders, such as the class of CIFAR-100.
    """
    there = {info.base_name for info in root.list() if info.type == fs.FileType.Directory}
    beside_classes = any(name not in SPLIT_OF and not is_hidden_folder(name) for name in there)
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        matching = [name for name in names if name in there]
        if beside_classes:
            matching = [name for name in matching if has_folders(root.folder(name))]
        if matching and (split != "test" or _has_class_folders(root.folder(matching[0]))):
            found[split] = matching[0]
    return found


def _refuse_nested(base: Folder, files: list[str]) -> None:
    """Refuse folders above the class folders, because the first level of folders becomes the labels.

    `CLASS/images/IMAGE` is allowed, as in Tiny ImageNet.

    Raises:
        SourceError: the class folders are on a deeper level; the message names an example.
    """
    between = [tuple(file.split("/")[:-1]) for file in files]
    split = next((path for path in between if SPLIT_OF.keys() & path[1:]), None)
    second: dict[str, set[str]] = {}
    for path in between:
        second.setdefault(path[0], set()).update(path[1:2])
    several = next((top for top, inside in second.items() if len(inside) > 1), None)
    nested = several is not None and all(len(path) > 1 for path in between)
    if split is not None or nested:
        found = "/".join(split) if split is not None else f"{several}/{min(second[str(several)])}"
        raise SourceError(
            f"{base.location} holds its images in folders of folders, such as {found}, so the first level may not be "
            "the classes. Give the folder that holds the class folders, or those of the splits, with --source."
        )


def _refuse_folder_of_all(base: Folder, files: list[str]) -> None:
    """Refuse a folder of a name such as `images` as the only class, and `images` beside `masks` as classes.

    Raises:
        SourceError: all images lie in such folders.
    """
    tops = sorted({file.partition("/")[0] for file in files})
    names = {top.lower() for top in tops}
    if len(tops) > 1 and names & _NOT_A_CLASS and names <= _NOT_A_CLASS | _OF_TARGETS:
        raise SourceError(
            f"{base.location} holds its images in {' and '.join(tops)}, which hardly are classes. Images with label "
            "maps are images/SPLIT/NAME.jpg, masks/SPLIT/NAME.png and classes.json: move them into such folders; "
            "--hold-out and --split do not divide them."
        )
    if names <= _NOT_A_CLASS:
        raise SourceError(
            f"{base.location} holds all its images in {tops[0]}, which hardly is a class. Understood are CLASS/IMAGE, "
            "CLASS/images/IMAGE, SPLIT/CLASS/IMAGE, and val/images beside val_annotations.txt (Tiny ImageNet)."
        )


def _refuse_broken_links(base: Folder) -> None:
    """Refuse symbolic links outside hidden folders that are broken or lead in a circle.

    `Folder.list` would leave the former out and follow the latter many times.

    Raises:
        SourceError: there are such links; the message gives their number and the first.
    """
    if not base.is_local:
        return
    broken, circles, folders = [], [], [base.path]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_symlink() and not os.path.exists(entry.path):
                    broken.append(entry.path[len(base.path) + 1 :])
                elif entry.is_symlink() and entry.is_dir() and _leads_in_a_circle(entry.path):
                    circles.append(entry.path[len(base.path) + 1 :])
                elif entry.is_dir(follow_symlinks=False) and not is_hidden_folder(entry.name):
                    folders.append(entry.path)
    if broken:
        raise SourceError(
            f"{len(broken):,} symbolic links in {base.location} are broken, such as {min(broken)}. Restore their "
            "targets, or remove the links."
        )
    if circles:
        raise SourceError(
            f"{len(circles):,} symbolic links in {base.location} lead to a folder that they are in, such as "
            f"{min(circles)}, so that its images would come without end. Remove the links."
        )


def _leads_in_a_circle(link: str) -> bool:
    """Whether a symbolic link to a folder points to one that it lies in."""
    target, place = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    return os.path.commonpath([target, place]) == target


def _has_class_folders(folder: Folder) -> bool:
    there = [info.base_name.lower() for info in folder.list() if info.type == fs.FileType.Directory]
    return any(not is_hidden_folder(name) and name not in _NOT_A_CLASS for name in there)


def has_folders(folder: Folder) -> bool:
    """Whether a folder holds other folders than hidden ones."""
    return any(info.type == fs.FileType.Directory and not is_hidden_folder(info.base_name) for info in folder.list())


def list_folder(
    root: Folder, split: str, known: ClassList | None, *, extensions: tuple[str, ...] = EXTENSIONS
) -> Listing:
    """List the images of a split stored in class folders.

    Args:
        root: folder of the source.
        split: split to list; a root without split folders is taken as this split.
        known: all classes, where a class list is available; None uses the names of the class folders, sorted.
        extensions: endings of the names of images, in lower case.

    Raises:
        SourceError: the source has no such split or no images, or a folder that is not in the class list.
    """
    splits = find_splits(root)
    if splits and not (split in splits or any(name in splits.values() for name in split_folders(split))):
        raise SourceError(f"{root.location} has no split {split!r}; it has {', '.join(sorted(splits))}")
    prefix = f"{splits[split]}/" if split in splits else ""
    return list_class_folders(root, prefix, split, known, extensions=extensions)


def list_class_folders(
    root: Folder,
    prefix: str,
    split: str,
    known: ClassList | None,
    *,
    source_format: str = "folder",
    extensions: tuple[str, ...] = EXTENSIONS,
) -> Listing:
    """List `ROOT/PREFIX/CLASS/…/IMAGE`.

    Args:
        root: folder of the source.
        prefix: path from `root` to the class folders; empty, or with `/` at its end.
        split: name of the split.
        known: all classes; None uses the names of the class folders, sorted.
        source_format: name of the form of the source.
        extensions: endings of the names of images, in lower case.

    Raises:
        SourceError: there are no images, a folder is not in the class list, the class folders are on a deeper level,
            or symbolic links are broken.
    """
    base = root.folder(prefix.rstrip("/")) if prefix else root
    _refuse_broken_links(base)
    folders, files, sizes, ignored, hidden = [], [], [], [], []
    loose = 0
    for info in base.list(recursive=True):
        relative = info.path[len(base.path) :].lstrip("/")
        top, slash, rest = relative.partition("/")
        parts = relative.split("/")
        if any(map(is_hidden_folder, parts if info.type == fs.FileType.Directory else parts[:-1])):
            if info.type == fs.FileType.File and relative.lower().endswith(extensions):
                hidden.append(relative)
        elif info.type == fs.FileType.Directory and not slash:
            folders.append(top)
        elif info.type == fs.FileType.File and not slash:
            loose += top.lower().endswith(extensions) and not top.startswith(".")
        elif info.type == fs.FileType.File:
            # `._NAME` holds macOS's metadata of the file NAME.
            if rest.lower().endswith(extensions) and not info.base_name.startswith("."):
                files.append(relative)
                sizes.append(info.size)
            else:
                ignored.append(relative)
    # An object store has no empty folders, and may list no folders at all.
    folders = sorted({*folders, *(file.partition("/")[0] for file in files)})
    if not files and loose:
        raise SourceError(
            f"{base.location} holds {loose:,} images and no class folders, so their classes are unknown. If they come "
            "from Kaggle, give the folder that holds LOC_val_solution.csv; if they come from ILSVRC2012_img_val.tar, "
            "give the folder that holds this archive and the development kit."
        )
    if not files:
        raise SourceError(
            f"{base.location} has no images in class folders (CLASS/IMAGE{extensions[0].upper()}); folders there: "
            f"{', '.join(folders[:5]) or 'none'}"
        )
    _refuse_folder_of_all(base, files)
    _refuse_nested(base, files)
    notes = []
    if loose:
        notes.append(f"{loose:,} images beside the class folders were left out: they have no class")
    if hidden:
        notes.append(f"{len(hidden):,} images in hidden or system folders were left out ({hidden[0]}, …)")
    if ignored:
        notes.append(f"{len(ignored)} files whose names are not those of images were left out ({ignored[0]}, …)")
    empty = sorted(set(folders) - {file.partition("/")[0] for file in files})
    if empty:
        notes.append(f"{len(empty)} class folders hold no images of {split} ({', '.join(empty[:5])})")
    classes = known.fitting(folders) if known else ClassList(tuple(ClassInfo(name, name) for name in folders))
    of_folder = classes.labels(folders, base.location)
    tops = [file.partition("/")[0] for file in files]
    return Listing(
        source_format=source_format,
        split=split,
        classes=classes.classes,
        files=pa.array([prefix + file for file in files], pa.string()),
        file=np.arange(len(files), dtype=np.int32),
        names=pa.array([prefix + file for file in files], pa.string()),
        keys=sample_keys(files, tops),
        labels=np.array([of_folder[top] for top in tops], np.int32),
        offsets=np.zeros(len(files), np.int64),
        sizes=np.array(sizes, np.int64),
        notes=tuple(notes),
    )
