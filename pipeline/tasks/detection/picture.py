"""Pictures of images with their objects: the true ones on the left, the found ones on the right."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SHOWN = 6
"""Number of images that are drawn."""
SIDE = 320
"""Longest side of an image in the picture, in pixels."""
GAP = 4
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
    picture = Image.new("RGB", (max(row.width for row in rows), sum(row.height + GAP for row in rows)), "white")
    top = 0
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height + GAP
    picture.save(path)


def _row(image: Shown, names: list[str]) -> Image.Image:
    height, width = image.size
    factor = SIDE / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    row = Image.new("RGB", (2 * size[0] + GAP, size[1]), "white")
    truths = [(found["bbox"], found["category"], "") for found in image.objects if not found["iscrowd"]]
    found = [
        (result["bbox"], result["category_id"], f" {result['score']:.2f}")
        for result in image.detections
        if result["score"] >= SCORE
    ]
    for left, boxes in ((0, truths), (size[0] + GAP, found)):
        part = Image.fromarray(np.ascontiguousarray(image.pixels)).resize(size)
        if left and image.masks is not None:
            for mask, result in zip(image.masks, image.detections, strict=True):
                if result["score"] >= SCORE:
                    colour = Image.new("RGB", size, COLOURS[result["category_id"] % len(COLOURS)])
                    covered = Image.fromarray(mask.astype(np.uint8) * 110).resize(size, Image.Resampling.NEAREST)
                    part.paste(colour, (0, 0), covered)
        pen = ImageDraw.Draw(part)
        for (x, y, w, h), label, text in boxes:
            colour = COLOURS[label % len(COLOURS)]
            corners = [x * factor, y * factor, (x + w) * factor, (y + h) * factor]
            pen.rectangle(corners, outline=colour, width=2)
            name = names[label].encode("latin-1", "replace").decode("latin-1")
            pen.text((corners[0] + 3, corners[1] + 2), name + text, fill=colour, font=ImageFont.load_default())
        row.paste(part, (left, 0))
    return row
