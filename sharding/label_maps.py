"""Label maps of a segmentation: which PNG files are some, and which values their pixels may have."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from sharding.errors import ImageError

LABEL_MAP = "png"
"""Extension of the label map in a shard."""
_PNG = b"\x89PNG"
_MODES = ("L", "P", "1")
_IN_COLOUR = ("P", "RGB", "RGBA")


@dataclass(frozen=True)
class LabelMaps:
    """The label maps of a split.

    Attributes:
        class_values: value of the pixels of each class.
        ignore_index: value of the pixels that belong to no class.
        ignored_values: further values of such pixels.
        colours: red, green and blue of each value that label maps in colour may have; empty if none are in colour.
    """

    class_values: tuple[int, ...]
    ignore_index: int
    ignored_values: tuple[int, ...] = ()
    colours: tuple[tuple[int, tuple[int, int, int]], ...] = ()

    def pack(self, data: bytes, width: int, height: int) -> bytes:
        """Check a label map of an image; return what is packed: a map in colour as a gray PNG, others as they are.

        Args:
            data: content of the file.
            width: of the image, in pixels.
            height: of the image, in pixels.

        Raises:
            ImageError: it is none; the message says what is wrong with it.
        """
        if self.colours and data.startswith(_PNG):
            data = self._from_colours(data)
        self.check(data, width, height)
        return data

    def _from_colours(self, data: bytes) -> bytes:
        """The gray PNG with the values of the colours of a label map; `data` itself where it has these values already.

        Raises:
            ImageError: it has another colour, or cannot be decoded.
        """
        with _decoding(), Image.open(io.BytesIO(data)) as image:
            if image.mode not in _IN_COLOUR:
                return data
            indices = np.asarray(image) if image.mode == "P" else None
            pixels = np.asarray(image.convert("RGB"), np.int32)
        found, place = np.unique(_code(pixels), return_inverse=True)
        value_of = {int(_code(np.array(colour))): value for value, colour in self.colours}
        for code in found.tolist():
            if code not in value_of:
                y, x = np.argwhere(_code(pixels) == code)[0]
                colour = tuple(pixels[y, x].tolist())
                raise ImageError(f"the label map has the colour {colour} at x = {x}, y = {y}, which is no class")
        values = np.array([value_of[code] for code in found.tolist()], np.uint8)[place].reshape(pixels.shape[:2])
        if indices is not None and np.array_equal(indices, values):
            return data
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, "PNG")
        return stream.getvalue()

    def check(self, data: bytes, width: int, height: int) -> None:
        """Check that a file is a label map of an image.

        Args:
            data: content of the file.
            width: of the image, in pixels.
            height: of the image, in pixels.

        Raises:
            ImageError: it is none; the message says what is wrong with it.
        """
        values = np.unique(read_label_map(data, width, height))
        unknown = sorted(set(values.tolist()) - {*self.class_values, self.ignore_index, *self.ignored_values})
        if unknown:
            listed = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
            raise ImageError(
                f"the label map has the value {listed}, which is no class; classes have "
                f"{_ranges(self.class_values)}, and pixels without a class {self.ignore_index}"
            )


def read_label_map(data: bytes, width: int, height: int) -> np.ndarray:
    """Decode a label map: uint8 [height, width].

    Raises:
        ImageError: the file is no PNG of 8 bits and one channel, is damaged, or has another size than the image.
    """
    if not data.startswith(_PNG):
        raise ImageError("the label map is no PNG file")
    with _decoding(), Image.open(io.BytesIO(data)) as image:
        if image.mode not in _MODES:
            raise ImageError(_describe_mode(image))
        if image.size != (width, height):
            raise ImageError(
                f"the label map has {image.width} x {image.height} pixels, its image {width} x {height}: they must "
                "have the same size"
            )
        # A palette image holds numbers of colours, which are the labels.
        return np.asarray(image).astype(np.uint8)


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Turn what Pillow raises for damaged files into an `ImageError`."""
    try:
        yield
    except ImageError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"the label map cannot be decoded: {error}") from error


def _code(colours: np.ndarray) -> np.ndarray:
    """One number for red, green and blue: int [...] for int [..., 3]."""
    return (colours[..., 0] << 16) | (colours[..., 1] << 8) | colours[..., 2]


def _describe_mode(image: Image.Image) -> str:
    if image.mode.startswith("I"):
        return "the label map has 16 bits a pixel: store it with 8, a class for each value from 0 to 254"
    colours = image.convert("RGB").getcolors(1 << 24) or [(0, (0, 0, 0))]
    return (
        f"the label map is in colour ({image.mode}, with the colour {max(colours)[1]}), and no class has a colour: "
        "store the number of the class in each pixel, in a gray or a palette PNG; or, in the form masks, give the "
        "colours in classes.json"
    )


def _ranges(values: tuple[int, ...]) -> str:
    if values == tuple(range(values[0], values[0] + len(values))):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values))
