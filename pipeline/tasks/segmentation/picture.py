"""Pictures of segmented images: beside each image the true and the predicted classes, and below them their names."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIDE = 256
"""Longest side of an image in the picture, in pixels."""
GAP, LINE = 4, 18
"""Pixels between images, and of a line of text."""
NAMED = 40
"""Greatest number of classes that are named, the largest ones."""
FIRST = (64, 64, 64)
"""Colour of the first class, which often is the background."""
SHADES = ((0.9, 0.95), (0.55, 1.0), (0.85, 0.7))
"""Saturation and value of the other classes, in turns."""
GOLDEN = 0.618034
UNLABELLED = (255, 255, 255)
"""Colour of pixels without a class."""


@dataclass(frozen=True)
class Shown:
    """An evaluated image.

    Attributes:
        pixels: uint8 [h, w, 3], RGB, in the size that the network saw.
        truth: uint8 [H, W], class of each pixel; classes that do not exist mark pixels without one.
        predicted: uint8 [H, W], predicted class of each pixel.
    """

    pixels: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    predicted: NDArray[np.uint8]


def palette(num_classes: int) -> NDArray[np.uint8]:
    """Return a colour for each of 256 classes: uint8 [256, 3]; those from `num_classes` on get `UNLABELLED`.

    The first class is dark gray. The hues of the others go round the circle by the golden ratio, so that classes of
    neighbouring numbers differ, and all are light enough to be told from the first.
    """
    colours = np.full((256, 3), UNLABELLED, np.uint8)
    colours[0] = FIRST
    for k in range(1, num_classes):
        saturation, value = SHADES[k % len(SHADES)]
        colours[k] = [round(255 * part) for part in colorsys.hsv_to_rgb(k * GOLDEN % 1, saturation, value)]
    return colours


def draw(path: Path, shown: Sequence[Shown], names: list[str]) -> None:
    """Draw a row for each image into a PNG file, and the names of the largest classes below; nothing without images.

    Args:
        path: of the file.
        shown: the images.
        names: name of each class.
    """
    if not shown:
        return
    colours = palette(len(names))
    rows = [_row(image, colours) for image in shown]
    counts = sum(np.bincount(m.ravel(), minlength=256) for image in shown for m in (image.truth, image.predicted))
    assert isinstance(counts, np.ndarray)
    named = [k for k in np.argsort(-counts, kind="stable").tolist() if counts[k] and k < len(names)][:NAMED]
    width = max(row.width for row in rows)
    height = sum(row.height + GAP for row in rows)
    picture = Image.new("RGB", (width, LINE + height + LINE * len(named)), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default()
    pen.text((2, 3), "left to right: image, truth, prediction; white: no class", fill="black", font=font)
    top = LINE
    for row in rows:
        picture.paste(row, (0, top))
        top += row.height + GAP
    for k in sorted(named):
        pen.rectangle((2, top + 3, 14, top + 15), fill=tuple(colours[k].tolist()), outline="gray")
        pen.text((20, top + 3), names[k].split(",")[0].encode("latin-1", "replace").decode("latin-1"), "black", font)
        top += LINE
    picture.save(path)


def _row(image: Shown, colours: NDArray[np.uint8]) -> Image.Image:
    """Return image, truth and prediction side by side."""
    rows, columns = image.truth.shape
    factor = SIDE / max(rows, columns)
    size = max(1, round(columns * factor)), max(1, round(rows * factor))
    parts: list[tuple[Any, Image.Resampling]] = [
        (image.pixels, Image.Resampling.BILINEAR),
        (colours[image.truth], Image.Resampling.NEAREST),
        (colours[image.predicted], Image.Resampling.NEAREST),
    ]
    row = Image.new("RGB", (3 * size[0] + 2 * GAP, size[1]), "white")
    for position, (pixels, resampling) in enumerate(parts):
        row.paste(
            Image.fromarray(np.ascontiguousarray(pixels)).resize(size, resampling), (position * (size[0] + GAP), 0)
        )
    return row
