"""Objects of images in COCO's form: read, checked, and written as the member of a shard that holds them.

Source: the format of `instances_*.json` at cocodataset.org, which labelling tools export as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sharding.errors import ImageError, SourceError
from sharding.manifest import ClassInfo

__all__ = ["CocoImage", "CocoSet", "check_target", "collect_objects", "read_coco", "target_member"]

FAR = 10
"""Sides of an image that a point of an object may lie beyond it."""


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image with annotations: its id, its file below the folder of images, and its size in pixels."""

    number: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True)
class CocoSet:
    """The images of a split with their objects.

    Attributes:
        classes: label `i` means `classes[i]`; in the order of the category ids, which are the `wnid` as text.
        images: in the order of their ids.
        objects: by image id, the objects in the file's order: `category` (the label), `bbox` (x, y, width, height in
            pixels), `area`, `iscrowd`, and `segmentation` (polygons or run lengths) as given, if there is one.
        faults: a line for each annotation that was left out.
        doubled_files: names of the images that share an id or a file, and were left out.
    """

    classes: tuple[ClassInfo, ...]
    images: tuple[CocoImage, ...]
    objects: Mapping[int, tuple[dict[str, Any], ...]]
    faults: tuple[str, ...]
    doubled_files: frozenset[str] = frozenset()

    @property
    def annotated(self) -> tuple[CocoImage, ...]:
        """The images with an object that can be learned: with one that is no crowd."""
        return tuple(
            image for image in self.images if any(not found["iscrowd"] for found in self.objects.get(image.number, ()))
        )


def read_coco(content: bytes, where: str) -> CocoSet:
    """Read an annotation file.

    A fault of one annotation is listed; a file whose categories contradict each other is refused. Images that share an
    id or a file are listed as well, and left out with their annotations: it is unknown which image those are of.

    Args:
        content: of the file.
        where: its name, for messages.

    Raises:
        SourceError: it is no annotation file, or the id of a category occurs twice.
    """
    try:
        entries = json.loads(content)
        categories = {_integer(entry["id"]): str(entry["name"]) for entry in entries["categories"]}
        images = [
            CocoImage(_integer(e["id"]), str(e["file_name"]), _integer(e["width"]), _integer(e["height"]))
            for e in entries["images"]
        ]
        annotations = list(entries["annotations"])
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"{where} is no annotation file in COCO's format ({type(error).__name__}: {error}); it needs images, "
            "categories and annotations"
        ) from error
    if not categories or len(categories) != len(entries["categories"]):
        raise SourceError(f"{where} has {len(entries['categories'])} categories with {len(categories)} different ids")
    for image in images:
        if image.width < 1 or image.height < 1:
            raise SourceError(f"{where}: image {image.number} has {image.width} x {image.height} pixels")
    doubled = list(_doubled(images))
    unclear = {image.number for pair, _ in doubled for image in pair}
    files = frozenset(image.file_name for image in images if image.number in unclear)
    faults = [
        (f"{where}:", f"images {a.number} ({a.file_name}) and {b.number} ({b.file_name}) have the same {what}")
        for (a, b), what in doubled
    ]
    clear = ((place, found) for place, found in _named(annotations, where) if not _is_of(found, unclear))
    rest = [image for image in images if image.number not in unclear]
    return replace(collect_objects(rest, categories, (*faults, *clear)), doubled_files=files)


def _is_of(annotation: Any, numbers: set[int]) -> bool:
    number = annotation.get("image_id") if isinstance(annotation, dict) else None
    return isinstance(number, int) and number in numbers


def _doubled(images: Iterable[CocoImage]) -> Iterator[tuple[tuple[CocoImage, CocoImage], str]]:
    """Yield each image that shares its id or its file with an earlier one, after that one, and what they share."""
    numbers: dict[int, CocoImage] = {}
    files: dict[str, CocoImage] = {}
    for image in images:
        first, other = numbers.setdefault(image.number, image), files.setdefault(image.file_name, image)
        if first is not image:
            yield (first, image), "id"
        elif other is not image:
            yield (other, image), "file"


def collect_objects(
    images: Iterable[CocoImage], categories: Mapping[int, str], annotations: Iterable[tuple[str, Any]]
) -> CocoSet:
    """Check annotations, whatever form they were read from, and sort them by image.

    Args:
        images: with different ids.
        categories: name by id.
        annotations: place of each, for messages, and the annotation as COCO has it: `image_id`, `category_id`, `bbox`,
            and perhaps `area`, `iscrowd` and `segmentation`; or a text that says what is wrong with it.
    """
    labels = {category: label for label, category in enumerate(sorted(categories))}
    by_number = {image.number: image for image in images}
    objects: dict[int, list[dict[str, Any]]] = {}
    faults = []
    for place, annotation in annotations:
        fault = annotation if isinstance(annotation, str) else _fault(annotation, labels, by_number)
        if fault is not None or isinstance(annotation, str):
            faults.append(f"{place} {fault}")
            continue
        found = {
            "category": labels[annotation["category_id"]],
            "bbox": [float(value) for value in annotation["bbox"]],
            "area": float(annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3])),
            "iscrowd": int(annotation.get("iscrowd", 0)),
        }
        if annotation.get("segmentation"):
            found["segmentation"] = annotation["segmentation"]
        objects.setdefault(annotation["image_id"], []).append(found)
    return CocoSet(
        classes=tuple(ClassInfo(str(category), categories[category]) for category in sorted(categories)),
        images=tuple(sorted(by_number.values(), key=lambda image: image.number)),
        objects={number: tuple(found) for number, found in objects.items()},
        faults=tuple(faults),
    )


def target_member(coco: CocoSet, image: CocoImage) -> bytes:
    """Return the content of KEY.json of an image: `image_id`, `width`, `height` and `objects`, as UTF-8."""
    content = {
        "image_id": image.number,
        "width": image.width,
        "height": image.height,
        "objects": list(coco.objects.get(image.number, ())),
    }
    return json.dumps(content, separators=(",", ":")).encode()


def check_target(content: bytes, width: int, height: int, num_classes: int | None = None) -> None:
    """Check that KEY.json is that of an image, and its objects are of classes that there are.

    Args:
        content: of KEY.json.
        width: of the image, in pixels.
        height: of the image, in pixels.
        num_classes: number of classes; None does not check them.

    Raises:
        ImageError: it is not; the message says why.
    """
    try:
        entries = json.loads(content)
        size, labels = (entries["width"], entries["height"]), [found["category"] for found in entries["objects"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ImageError(f"KEY.json holds no objects ({type(error).__name__}: {error})") from error
    if size != (width, height):
        raise ImageError(
            f"the image has {width} x {height} pixels, its annotation says {size[0]} x {size[1]}: it is another "
            "image, or was resized or turned after it was annotated"
        )
    if num_classes is not None and not all(0 <= label < num_classes for label in labels):
        raise ImageError(f"KEY.json has objects of class {max(labels)}; there are {num_classes} classes")


def _named(annotations: Iterable[Any], where: str) -> Iterator[tuple[str, Any]]:
    """Yield the place of each annotation of a file with it, or with what is wrong with it."""
    seen: set[Any] = set()
    for position, annotation in enumerate(annotations):
        number = annotation.get("id") if isinstance(annotation, dict) else None
        place = f"{where}: annotation {position if number is None else number}"
        if not isinstance(annotation, dict):
            yield place, "is no object"
        elif number is not None and number in seen:
            yield place, "occurs twice"
        else:
            seen.add(number)
            yield place, annotation


def _fault(annotation: Mapping[str, Any], labels: Mapping[int, int], images: Mapping[int, CocoImage]) -> str | None:
    """Return what is wrong with an annotation, or None."""
    number, category = annotation.get("image_id"), annotation.get("category_id")
    image = images.get(number) if isinstance(number, int) else None
    if image is None:
        return f"belongs to image {number}, which the file does not name"
    if not isinstance(category, int | str) or category not in labels:
        return f"of image {image.number} has the category {category}, which has no name"
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(_is_number(value) for value in box)):
        return f"of image {image.number} has the box {box}; it needs four numbers"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return f"of image {image.number} has an empty box {box}"
    if x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0:
        return f"of image {image.number} has the box {box} outside its {image.width} x {image.height} pixels"
    if _is_far([x, y, x + width, y + height], image):
        return f"of image {image.number} has the box {box} far beyond its {image.width} x {image.height} pixels"
    if "area" in annotation and not (_is_number(annotation["area"]) and annotation["area"] >= 0):
        return f"of image {image.number} has the area {annotation['area']}; it is a number of pixels"
    if annotation.get("iscrowd", 0) not in (0, 1):
        return f"of image {image.number} has iscrowd {annotation['iscrowd']}; it is 0 or 1"
    return _fault_of_segmentation(annotation.get("segmentation"), image)


def _fault_of_segmentation(segmentation: Any, image: CocoImage) -> str | None:
    """Return what is wrong with polygons or run lengths, or None; there may be none at all."""
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        size, counts = segmentation.get("size"), segmentation.get("counts")
        if size != [image.height, image.width]:
            return f"of image {image.number} has a mask of {size}, the image has [{image.height}, {image.width}]"
        runs = _unpacked(counts) if isinstance(counts, str) else counts
        if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
            return f"of image {image.number} has a mask without runs"
        if sum(runs) != image.height * image.width:
            return f"of image {image.number} has a mask whose runs add up to {sum(runs)} pixels"
        return None
    for polygon in segmentation if isinstance(segmentation, list) else [segmentation]:
        if not isinstance(polygon, list) or len(polygon) % 2 or not all(_is_number(value) for value in polygon):
            return f"of image {image.number} has a polygon that is no list of x, y"
        if len(polygon) < 6:
            return f"of image {image.number} has a polygon with {len(polygon) // 2} points; it needs three"
        if _is_far(polygon, image):
            return f"of image {image.number} has a polygon far beyond its {image.width} x {image.height} pixels"
    return None


def _is_far(points: list[float], image: CocoImage) -> bool:
    """Return whether one of the points x, y, x, y, ... lies beyond an image by more than `FAR` of its sides.

    What draws a polygon into a mask takes memory and time for each pixel of its outline, in the image or beyond it.
    """
    sides = (image.width, image.height)
    return not all(-FAR * sides[k % 2] <= value <= (1 + FAR) * sides[k % 2] for k, value in enumerate(points))


def _unpacked(counts: str) -> list[int] | None:
    """Return the run lengths that a text holds, as `maskApi.c` of pycocotools packs them; None if it holds none.

    A character has five bits of a number, the lowest first, and a sixth bit says whether more follow. From the fourth
    on a number is the difference to the run before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return None if shift else runs


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is no integer")
    return value
