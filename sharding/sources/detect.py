"""Detect the form of a source, split by split, and list its images."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from functools import partial

from pyarrow import fs

from sharding.errors import SourceError
from sharding.source_format import SourceFormat
from sharding.sources import cityscapes, coco, ilsvrc, kaggle, label_maps, parquet, tiny_imagenet, voc, voc_boxes, yolo
from sharding.sources import folder as class_folders
from sharding.sources.class_files import find_class_list
from sharding.sources.classes import ClassList
from sharding.sources.devkit import read_devkit
from sharding.sources.labels import align_labels
from sharding.sources.listing import Listing
from sharding.storage import Folder
from sharding.zips import open_zip

_CITYSCAPES = "Cityscapes, which needs leftImg8bit/{train,val} and gtFine/{train,val}"
_VOC = (
    "Pascal VOC, which needs JPEGImages, and SegmentationClass with ImageSets/Segmentation/{train,val}.txt or "
    "Annotations with ImageSets/Main/{train,val}.txt"
)
# Folders that no class has as its name: the layout that they belong to, and all that it needs.
_PARTS = {
    "leftImg8bit": _CITYSCAPES,
    "gtFine": _CITYSCAPES,
    "JPEGImages": _VOC,
    "SegmentationClass": _VOC,
}
_OF_CLASS_FOLDERS = ("kaggle", "tiny-imagenet", "folder")
_NAME_THEIR_CLASSES = ("ade20k", "cityscapes", "voc", "masks", "coco", "coco-json")


def open_source(location: str) -> Folder:
    """Open the folder of a source, or a zip archive as one; for an archive of ImageNet, the folder that contains it.

    Raises:
        SourceError: the source does not exist, is a damaged zip archive, or another file that is no archive.
    """
    root = Folder.open(location)
    kind = root.filesystem.get_file_info(root.path).type
    if kind == fs.FileType.File:
        root, name = Folder.of_file(location)
        if name.lower().endswith(".zip"):
            return open_zip(location)
        if name not in ilsvrc.ARCHIVES.values() and not name.endswith(".parquet"):
            raise SourceError(
                f"the source {location!r} is a file that is none of ImageNet's archives "
                f"({', '.join(ilsvrc.ARCHIVES.values())}) and no zip. Give the folder that holds the images."
            )
    elif kind != fs.FileType.Directory:
        raise SourceError(f"the source {location!r} does not exist. Give the folder that holds ImageNet with --source.")
    return root


def find_splits(root: Folder, source_format: SourceFormat | None) -> dict[str, SourceFormat]:
    """Find the splits of a source and the form of each; of several forms, the first of `SourceFormat`.

    Raises:
        SourceError: the source is a folder of Hugging Face's `save_to_disk`.
    """
    _refuse_saved_dataset(root)
    finders: dict[SourceFormat, Callable[[Folder], Iterable[str]]] = {
        "ilsvrc": ilsvrc.find_splits,
        "kaggle": kaggle.find_splits,
        "tiny-imagenet": tiny_imagenet.find_splits,
        "parquet": parquet.find_splits,
        "voc": voc.find_splits,
        "voc-xml": voc_boxes.find_voc_box_splits,
        "ade20k": label_maps.find_ade20k_splits,
        "cityscapes": cityscapes.find_splits,
        "masks": label_maps.find_mask_splits,
        "coco": coco.find_coco_splits,
        "coco-json": coco.find_coco_json_splits,
        "yolo": yolo.find_yolo_splits,
        "folder": class_folders.find_splits,
    }
    found: dict[str, SourceFormat] = {}
    for form, find in finders.items():
        if source_format in (None, form):
            found = {**dict.fromkeys(find(root), form), **found}
    return found


def _refuse_part(root: Folder) -> None:
    """Refuse a part of a layout with label maps: its folders would be packed as classes.

    Raises:
        SourceError: it is one; the message says what is lacking.
    """
    parts = [info.base_name for info in root.list() if info.base_name in _PARTS]
    if parts:
        raise SourceError(f"{root.location} holds {parts[0]} of {_PARTS[parts[0]]}. Add what is lacking.")


def _refuse_saved_dataset(root: Folder) -> None:
    """Refuse a folder that Hugging Face's `save_to_disk` wrote: Arrow files, which differ between versions.

    Raises:
        SourceError: it is one; the message says how to write parquet files.
    """
    if "dataset_dict.json" in root.names():
        loaded, given = f"datasets.load_from_disk({root.location!r})['train']", "for each split: "
    elif {"state.json", "dataset_info.json"} <= set(root.names()):
        loaded, given = f"datasets.load_from_disk({root.location!r})", ""
    else:
        return
    raise SourceError(
        f"{root.location} was written by save_to_disk of Hugging Face's datasets; the build reads parquet. Write it, "
        f"{given}{loaded}.to_parquet('FOLDER/train-00000-of-00001.parquet'), and give FOLDER with --source."
    )


def list_splits(location: str, source_format: SourceFormat | None = None) -> list[str]:
    """List the names of the splits in a source; the path of an archive gives the split in it.

    Args:
        location: folder or URI of the source.
        source_format: form of the source; None detects it.

    Raises:
        SourceError: the source is missing, or holds no split that can be recognised.
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
            "no --source-format to detect the form."
        )
    if not found:
        _refuse_part(root)
        raise SourceError(
            f"{location!r} holds no split that can be recognised: no {' or '.join(ilsvrc.ARCHIVES.values())}, no "
            "parquet files train-*.parquet, no folder train or val. "
            "If it holds class folders, divide them with --hold-out 0.2, or name the split: --split train"
        )
    return sorted(found)


def list_split(
    location: str,
    split: str,
    source_format: SourceFormat | None = None,
    classes: str | None = None,
    image_member: str | None = None,
) -> Listing:
    """List the images of one split.

    Args:
        location: folder or URI of the source.
        split: name of the split, such as `train` or `validation`.
        source_format: form of the source; None detects it.
        classes: list of the classes that gives the labels; None uses the classes of the source.
        image_member: extension of the images in class folders; None takes the usual ones.

    Raises:
        SourceError: the source has no such split, is damaged, or contradicts itself.
    """
    root = open_source(location)
    form = find_splits(root, source_format).get(split, source_format or "folder")
    if form == "folder":
        _refuse_part(root)
    if classes is not None and form in _NAME_THEIR_CLASSES:
        raise SourceError(
            f"--classes {classes} gives the labels of whole images; the {split} split of {location} is held as {form}, "
            "which names its classes itself: leave it out"
        )
    known = _known_classes(root, form, classes)
    if image_member is None:
        extensions = class_folders.EXTENSIONS
    elif form not in _OF_CLASS_FOLDERS:
        raise SourceError(
            f"--image-member {image_member} is for images in class folders; the {split} split of {location} is held as "
            f"{form}: leave it out"
        )
    else:
        extensions = (f".{image_member.lower().lstrip('.')}",)
    readers: dict[SourceFormat, Callable[[Folder, str, ClassList | None], Listing]] = {
        "ilsvrc": ilsvrc.list_archive,
        "kaggle": partial(kaggle.list_kaggle, extensions=extensions),
        "tiny-imagenet": partial(tiny_imagenet.list_tiny_imagenet, extensions=extensions),
        "parquet": parquet.list_parquet,
        "voc": voc.list_voc,
        "voc-xml": voc_boxes.list_voc_boxes,
        "ade20k": label_maps.list_ade20k,
        "cityscapes": cityscapes.list_cityscapes,
        "masks": label_maps.list_masks,
        "coco": coco.list_coco,
        "coco-json": coco.list_coco_json,
        "yolo": yolo.list_yolo,
        "folder": partial(class_folders.list_folder, extensions=extensions),
    }
    listing = readers[form](root, split, known)
    if classes is not None and known is not None:
        form_of_list = known.form if listing.classes == known.classes else "one class name a line"
        note = f"{len(listing.classes):,} classes from {known.origin}, read as {form_of_list}"
        listing = dataclasses.replace(listing, notes=(*listing.notes, note))
    listing.check()
    return dataclasses.replace(listing, classes_found=known is None and form in ("folder", "parquet"))


def list_source(
    location: str,
    split: str | None,
    source_format: SourceFormat | None = None,
    classes: str | None = None,
    image_member: str | None = None,
) -> list[Listing]:
    """List the splits to pack, with labels that mean the same in all splits of the source.

    Args:
        location: folder or URI of the source.
        split: name of the split to pack; None packs all.
        source_format: form of the source; None detects it.
        classes: see `list_split`.
        image_member: see `list_split`.

    Raises:
        SourceError: see `list_split` and `align_labels`.
    """
    wanted = list_splits(location, source_format) if split is None else [class_folders.SPLIT_OF.get(split, split)]
    root = open_source(location)
    forms = find_splits(root, source_format)
    unlabelled = [
        name for name in wanted if split is None and forms[name] == "parquet" and parquet.is_unlabelled(root, name)
    ]
    if len(unlabelled) < len(wanted):
        wanted = [name for name in wanted if name not in unlabelled]
    listings = [list_split(location, name, source_format, classes, image_member) for name in wanted]
    for name in unlabelled:
        note = f"the {name} split has no labels and is left out"
        listings[-1] = dataclasses.replace(listings[-1], notes=(*listings[-1].notes, note))
    if split is None and "test" not in forms and root.folder("test").exists():
        note = "the folder test has no class folders, so its images have no labels and are left out"
        listings[-1] = dataclasses.replace(listings[-1], notes=(*listings[-1].notes, note))
    others = []
    if any(listing.classes_found for listing in listings):
        for name in forms.keys() - {*wanted, *unlabelled}:
            with contextlib.suppress(SourceError):  # packing that split reports the error and compares its labels
                others.append(list_split(location, name, source_format, classes, image_member))
    shared = parquet.share_classes([*listings, *sorted(others, key=lambda listing: listing.split)])
    return align_labels(shared[: len(listings)], shared[len(listings) :])


def _known_classes(root: Folder, form: SourceFormat, given: str | None) -> ClassList | None:
    """Find the class list: that of --classes, a synset mapping or, for images in folders, that of the development kit.

    Where the source is the folder of one split, such as `imagenet/train`, the search includes its parent folder.
    """
    known = find_class_list(root, given)
    folders = [root]
    parent, name = Folder.of_file(root.location)
    if name in class_folders.SPLIT_OF:
        folders.append(parent)
        known = known or find_class_list(parent, None)
    if known is None and form in ("kaggle", "folder"):
        kits = (read_devkit(folder) for folder in folders)
        known = next((kit.classes for kit in kits if kit is not None), None)
    return known
