"""Objects in XML files of Pascal VOC's form, as VOC has them and many labelling tools write them.

VOC itself: `JPEGImages`, `Annotations/NAME.xml` and `ImageSets/Main/{train,val}.txt`, in the folder or below
`VOCdevkit/`. Exported sets: `annotations/SPLIT/NAME.xml` with `images/SPLIT/NAME.jpg`, or both together in `SPLIT/`.
Corners are VOC's: pixels counted from 1, the last one included. Objects marked as difficult become crowds, which
neither a training nor an evaluation counts. The classes are those of `--classes`, of `classes.txt`, or else the sorted
names of all splits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from sharding.coco import CocoImage, collect_objects
from sharding.errors import SourceError
from sharding.sources import voc
from sharding.sources.classes import ClassList
from sharding.sources.folder import EXTENSIONS
from sharding.sources.listing import Listing
from sharding.sources.object_listing import (
    SPLITS,
    image_sizes,
    list_files,
    list_objects,
    listed_names,
    read_files,
)
from sharding.storage import Folder

__all__ = ["find_voc_box_splits", "list_voc_boxes"]

_LISTS = "ImageSets/Main"


@dataclass(frozen=True)
class _Split:
    """Where a split is.

    Attributes:
        images: folder of the images.
        annotations: folder of the XML files.
        listed: stems of the images; None takes all XML files of the folder.
    """

    images: str
    annotations: str
    listed: frozenset[str] | None = None


def find_voc_box_splits(root: Folder) -> dict[str, _Split]:
    """Find the splits."""
    place = voc.find_place(root, _LISTS)
    if place is not None:
        return {
            split: _Split(f"{place}JPEGImages", f"{place}Annotations", frozenset(voc.stems(root, path)))
            for split, path in voc.lists_of(root, place, _LISTS).items()
        }
    found = {}
    for split, names in SPLITS.items():
        for name in names:
            for images, pages in ((f"images/{name}", f"annotations/{name}"), (name, name)):
                if split not in found and _holds_xml(root.folder(pages)) and root.folder(images).exists():
                    found[split] = _Split(images, pages)
    return found


def _holds_xml(folder: Folder) -> bool:
    return any(name.lower().endswith(".xml") for name in folder.names())


def list_voc_boxes(root: Folder, split: str, known: ClassList | None) -> Listing:
    """List a split.

    Raises:
        SourceError: there is no such split, or no object in it.
    """
    places = find_voc_box_splits(root)
    if split not in places:
        raise SourceError(f"{root.location} has no split {split!r}; it has {', '.join(sorted(places)) or 'none'}")
    documents = {name: dict(_documents(root, place)) for name, place in places.items()}
    names = _class_names(root, known, documents)
    own, place = documents[split], places[split]
    files = list_files(root, place.images, EXTENSIONS)
    file_of = {name.rpartition(".")[0]: name for name in sorted(files)}
    unsized = [file_of[stem] for stem, page in own.items() if stem in file_of and _size(page) is None]
    measured = image_sizes(root.folder(place.images), unsized)
    faults: list[tuple[str, Any]] = []
    images: list[CocoImage] = []
    annotations: list[tuple[str, Any]] = []
    labels = {name: label for label, name in enumerate(names)}
    for number, (stem, page) in enumerate(own.items()):
        where, name = f"{place.annotations}/{stem}.xml", file_of.get(stem, f"{stem}.jpg")
        size = page if isinstance(page, str) else _size(page) or measured.get(name, "says no size of its image")
        if isinstance(size, str) or isinstance(page, str):
            faults.append((where, size))
            continue
        images.append(CocoImage(number, name, *size))
        annotations += _objects(page, where, number, labels)
    coco = collect_objects(images, dict(enumerate(names)), (*faults, *annotations))
    return list_objects("voc-xml", split, coco, files, place.images, place.annotations)


def _documents(root: Folder, place: _Split) -> Iterator[tuple[str, ElementTree.Element | str]]:
    """Yield the stem of each XML file of a split and its content, or what is wrong with it."""
    there = {name[:-4]: name for name in list_files(root, place.annotations, (".xml",))}
    wanted = sorted(there if place.listed is None else place.listed)
    for stem in wanted:
        if stem not in there:
            yield stem, "is missing"
    files = (there[stem] for stem in wanted if stem in there)
    for name, content in read_files(root.folder(place.annotations), files):
        try:
            yield name[:-4], ElementTree.fromstring(content)
        except ElementTree.ParseError as error:
            yield name[:-4], f"is no XML: {error}"


def _size(page: ElementTree.Element | str) -> tuple[int, int] | None:
    """Return the (width, height) that an annotation says; None if it says none."""
    try:
        width, height = (int(float(page.findtext(f"size/{side}", ""))) for side in ("width", "height"))  # pyright: ignore
    except (ValueError, OverflowError, AttributeError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _objects(
    page: ElementTree.Element, where: str, image: int, labels: Mapping[str, int]
) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Yield the place and the annotation of each object of an XML file, or what is wrong with it."""
    seen: set[Any] = set()
    for position, entry in enumerate(page.iter("object"), start=1):
        name, place = entry.findtext("name", "").strip(), f"{where}: object {position}"
        corners = [entry.findtext(f"bndbox/{corner}", "") for corner in ("xmin", "ymin", "xmax", "ymax")]
        try:
            left, top, right, bottom = map(float, corners)
        except ValueError:
            yield place, f"has the corners {corners}; it needs four numbers"
            continue
        if (name, *corners) in seen:
            yield place, "occurs twice"
            continue
        seen.add((name, *corners))
        difficult = entry.findtext("difficult", "0").strip()
        yield (
            place,
            {
                "image_id": image,
                "category_id": labels.get(name, name),
                "bbox": [left - 1, top - 1, right - left + 1, bottom - top + 1],
                "iscrowd": int(difficult) if difficult in ("0", "1") else difficult,
            },
        )


def _class_names(
    root: Folder, known: ClassList | None, documents: Mapping[str, Mapping[str, ElementTree.Element | str]]
) -> list[str]:
    if known is not None:
        return [entry.name for entry in known.classes]
    listed = listed_names(root)
    if listed:
        return listed
    pages = [page for found in documents.values() for page in found.values() if not isinstance(page, str)]
    names = {entry.findtext("name", "").strip() for page in pages for entry in page.iter("object")} - {""}
    if not names:
        raise SourceError(f"{root.location}: no XML file names an object")
    return sorted(names)
