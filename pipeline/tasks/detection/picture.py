"""Pictures of images with their objects: the true ones on the left, the found ones on the right."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.tasks.detection.geometry import mask_of

SHOWN = 6
"""Number of images that are drawn."""
SIDE = 320
"""Longest side of an image in the picture, in pixels."""
GAP = 4
LINE = 18
"""Height of the heading."""
COVER = 110
"""How much a mask covers the image, of 255."""
SCORE = 0.5
"""Lowest score of a detection that is drawn."""
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000", "#808000", "#000075")


@dataclass(frozen=True)
class Shown:
    """An evaluated image.

    Attributes:
        pixels: uint8 [h, w, 3], RGB, in the size that the network saw.
        size: (height, width) of the image itself, in whose pixels the boxes are.
        objects: its true objects, as KEY.json has them.
        detections: COCO results.
        masks: bool [D, H, W] of the detections; None where the network finds none.
    """

    pixels: NDArray[np.uint8]
    size: tuple[int, int]
    objects: Sequence[dict[str, Any]]
    detections: Sequence[dict[str, Any]]
    masks: NDArray[np.bool_] | None


def draw(path: Path, shown: Sequence[Shown], names: list[str]) -> None:
    """Draw a row for each image into a PNG file; nothing without images.

    Args:
        path: of the file.
        shown: the images.
        names: name of each class.
    """
    if not shown:
        return
    rows = [_row(image, names) for image in shown]
    width, height = max(row.width for row in rows), sum(row.height + GAP for row in rows)
    picture = Image.new("RGB", (width, LINE + height), "white")
    heading = f"left: true objects; right: found objects with a score of at least {SCORE}"
    ImageDraw.Draw(picture).text((2, 3), heading, fill="black", font=ImageFont.load_default())
    top = LINE
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height + GAP
    picture.save(path)


@dataclass(frozen=True)
class Drawn:
    """An object to draw: its COCO `bbox`, class, what is written after the class, and its mask [H, W], if any."""

    bbox: Sequence[float]
    label: int
    text: str
    mask: NDArray[Any] | None


def draw_objects(
    pixels: NDArray[np.uint8], size: tuple[int, int], objects: Sequence[Drawn], names: Sequence[str], side: int
) -> Image.Image:
    """Draw objects over an image.

    Args:
        pixels: uint8 [h, w, 3], RGB.
        size: (height, width) of the image that the boxes and masks are of.
        objects: what is drawn.
        names: name of each class.
        side: longest side of the picture in pixels.
    """
    height, width = size
    factor = side / max(height, width)
    drawn = max(1, round(width * factor)), max(1, round(height * factor))
    part = Image.fromarray(np.ascontiguousarray(pixels)).resize(drawn)
    for entry in objects:
        if entry.mask is not None:
            covered = Image.fromarray(entry.mask.astype(np.uint8) * COVER)
            part.paste(_colour(entry.label), (0, 0, *drawn), covered.resize(drawn, Image.Resampling.NEAREST))
    pen = ImageDraw.Draw(part)
    boxes = [[value * factor for value in entry.bbox] for entry in objects]
    for entry, (x, y, width, height) in zip(objects, boxes, strict=True):
        pen.rectangle((x, y, x + width, y + height), outline=_colour(entry.label), width=2)
    # A text that a later box crosses could not be read.
    for entry, (x, y, _, _) in zip(objects, boxes, strict=True):
        name = names[entry.label].split(",")[0].encode("latin-1", "replace").decode("latin-1")
        _write(pen, (x + 3, y + 2), _colour(entry.label), name + entry.text, max(11, side // 34))
    return part


def _row(image: Shown, names: list[str]) -> Image.Image:
    """Return the image with its true objects and with the found ones, side by side."""
    has_masks = image.masks is not None
    truths = [
        Drawn(
            entry["bbox"],
            entry["category"],
            "",
            mask_of(entry["segmentation"], image.size) if has_masks and entry.get("segmentation") else None,
        )
        for entry in image.objects
        if not entry["iscrowd"]
    ]
    found = [
        Drawn(
            entry["bbox"],
            entry["category_id"],
            f" {entry['score']:.2f}",
            None if image.masks is None else image.masks[position],
        )
        for position, entry in enumerate(image.detections)
        if entry["score"] >= SCORE
    ]
    left, right = (draw_objects(image.pixels, image.size, objects, names, SIDE) for objects in (truths, found))
    row = Image.new("RGB", (2 * left.width + GAP, left.height), "white")
    row.paste(left, (0, 0))
    row.paste(right, (left.width + GAP, 0))
    return row


def _colour(label: int) -> str:
    return COLOURS[label % len(COLOURS)]


def _write(pen: ImageDraw.ImageDraw, place: tuple[float, float], colour: str, text: str, size: int) -> None:
    """Write a text, white on a colour, in letters of a size in pixels."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = pen.textbbox(place, text, font=font)
    pen.rectangle((left - 3, top - 2, right + 3, bottom + 2), fill=colour)
    pen.text(place, text, fill="white", font=font)
