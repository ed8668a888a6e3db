"""Objects in YOLO's text files, as Ultralytics' tools and most labelling tools write them.

`ROOT/images/SPLIT/NAME.jpg` with `ROOT/labels/SPLIT/NAME.txt`, or `ROOT/SPLIT/images` with `ROOT/SPLIT/labels`. A line
is an object: its class and either `x y width height` of its box, where x and y are the centre, or three or more points
`x y` of its outline; all in shares of the image's sides. The names of the classes are those of `--classes`, or `names`
in a YAML file of the folder (`data.yaml`), or the lines of `classes.txt`. An image without a text file has no objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sharding.coco import CocoImage, collect_objects
from sharding.errors import SourceError
from sharding.sources.classes import ClassList
from sharding.sources.folder import EXTENSIONS
from sharding.sources.listing import Listing
from sharding.sources.object_listing import (
    CLASSES,
    SPLITS,
    image_sizes,
    list_files,
    list_objects,
    listed_names,
    read_files,
)
from sharding.storage import Folder

__all__ = ["find_yolo_splits", "list_yolo"]

_BOX, _OUTLINE = 4, 6
"""Numbers of a box, and at least of an outline."""
_COCO_NAMES = {"train": ("train2017",), "validation": ("val2017",)}


def find_yolo_splits(root: Folder) -> dict[str, tuple[str, str]]:
    """Find the splits: the folders of the images and of the text files of each."""
    found = {}
    for split, names in SPLITS.items():
        for name in (*names, *_COCO_NAMES.get(split, ())):
            for images, labels in ((f"images/{name}", f"labels/{name}"), (f"{name}/images", f"{name}/labels")):
                if split not in found and root.folder(labels).exists() and root.folder(images).exists():
                    found[split] = (images, labels)
    return found


def list_yolo(root: Folder, split: str, known: ClassList | None) -> Listing:
    """List a split.

    Raises:
        SourceError: there is no such split, or the classes have no names.
    """
    places = find_yolo_splits(root)
    if split not in places:
        raise SourceError(f"{root.location} has no split {split!r}; it has {', '.join(sorted(places)) or 'none'}")
    images, labels = places[split]
    names = [entry.name for entry in known.classes] if known else _class_names(root)
    files = list_files(root, images, EXTENSIONS)
    texts = list_files(root, labels, (".txt",))
    sizes = image_sizes(root.folder(images), sorted(files))
    number = {name.rpartition(".")[0]: position for position, name in enumerate(sorted(files))}
    found = [
        CocoImage(position, name, *size)
        for position, (name, size) in enumerate(sizes.items())
        if isinstance(size, tuple)
    ]
    shapes = {image.number: (image.width, image.height) for image in found}

    def annotations() -> Iterator[tuple[str, Any]]:
        for name, size in sizes.items():
            if isinstance(size, str):
                yield f"{images}/{name}", size
        for text, content in read_files(root.folder(labels), sorted(texts.keys() - {CLASSES})):
            image = number.get(text.removesuffix(".txt"))
            if image is None:
                yield f"{labels}/{text}", f"has no image in {images}"
            elif image in shapes:
                yield from _objects(content, f"{labels}/{text}", image, *shapes[image])

    coco = collect_objects(found, dict(enumerate(names)), annotations())
    bare = sum(stem + ".txt" not in texts for stem in number)
    notes = [f"{bare:,} images in {images} have no text file in {labels}, so no objects"] if bare else []
    readable = {image.file_name: files[image.file_name] for image in found}
    return list_objects("yolo", split, coco, readable, images, labels, notes=notes)


def _objects(content: bytes, where: str, image: int, width: int, height: int) -> Iterator[tuple[str, Any]]:
    """Yield the place and the annotation of each line of a text file, or what is wrong with it."""
    seen: set[str] = set()
    for position, line in enumerate(content.decode("utf-8", "replace").splitlines(), start=1):
        place = f"{where}, line {position}:"
        if not line.strip():
            continue
        if line.strip() in seen:
            yield place, "occurs twice"
            continue
        seen.add(line.strip())
        try:
            category, *values = line.split()
            label, shares = int(category), list(map(float, values))
        except ValueError:
            yield place, f"is no class with numbers: {line.strip()[:40]}"
            continue
        if len(shares) != _BOX and (len(shares) < _OUTLINE or len(shares) % 2):
            yield place, f"has {len(shares)} numbers after the class; a box has {_BOX}, an outline pairs of x and y"
            continue
        yield place, {"image_id": image, "category_id": label, **_shape(shares, width, height)}


def _shape(shares: list[float], width: int, height: int) -> dict[str, Any]:
    """Return the entries of an annotation that say where an object is, in pixels."""
    if len(shares) == _BOX:
        x, y, w, h = (share * side for share, side in zip(shares, (width, height) * 2, strict=True))
        return {"bbox": [x - w / 2, y - h / 2, w, h]}
    xs, ys = [x * width for x in shares[::2]], [y * height for y in shares[1::2]]
    polygon = [value for point in zip(xs, ys, strict=True) for value in point]
    around = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    return {"bbox": around, "segmentation": [polygon], "area": _area(xs, ys)}


def _area(xs: list[float], ys: list[float]) -> float:
    """Return the area of a polygon (the shoelace formula)."""
    turns = (xs[k - 1] * ys[k] - xs[k] * ys[k - 1] for k in range(len(xs)))
    return abs(sum(turns)) / 2


def _class_names(root: Folder) -> list[str]:
    """Return the names of the classes by their number.

    Raises:
        SourceError: no file names them, or it does so in another form.
    """
    import yaml

    tables = [name for name in root.names() if name.lower().endswith((".yaml", ".yml"))]
    for table in tables:
        where = f"{root.location}/{table}"
        try:
            content = yaml.safe_load(root.read(table))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SourceError(f"{where} is no YAML: {' '.join(str(error).split())}") from error
        names = content.get("names") if isinstance(content, dict) else None
        if names is None:
            continue
        given = dict(enumerate(names)) if isinstance(names, list) else names
        if not isinstance(given, dict) or sorted(given) != list(range(len(given))) or not given:
            raise SourceError(f"{where}: names is no list of classes, and no table with their numbers from 0")
        return [str(given[number]) for number in range(len(given))]
    listed = listed_names(root)
    if not listed:
        raise SourceError(
            f"{root.location} names no classes: write data.yaml with names: [cat, dog], or {CLASSES} with a name a line"
        )
    return listed
