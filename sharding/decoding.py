"""From encoded bytes to pixels: the one rule for what counts as a sound image.

Build, index, verify, training, evaluation and the served model decode by it, so that they accept the same files. The
header of a JPEG is read before any C decoder sees a byte. libjpeg-turbo decodes ordinary JPEGs, Pillow everything else.
The module needs numpy, simplejpeg and Pillow.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from sharding.errors import ImageError
from sharding.jpeg_header import JPEG_START, MAX_PIXELS, MAX_SIDE, JpegHeader, JpegHeaderError, read_jpeg_header
from sharding.mistaken_files import describe_text

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]
# Formats that Pillow may read here.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Parts of libjpeg's warnings about image data that is missing or damaged.
_DAMAGE = ("Premature end", "premature end", "bad Huffman code", "Corrupt JPEG data: bad")
_END_OF_IMAGE = b"\xff\xd9"
_APP2 = 0xE2
_PROFILE = b"ICC_PROFILE\0"
_BAD_PROFILE = "bad ICC marker"
_MOST_REPAIRS = 4
# Pixels of a strip that is converted at a time: the strips take little memory beside the image.
_STRIP = 1 << 20
_ORIENTATION = 0x0112
_NOT_UPRIGHT = range(2, 9)  # values of the tag; 1 is upright, and some cameras write 0


class OrdinaryJpeg(NamedTuple):
    """A JPEG that libjpeg-turbo decodes to RGB.

    Attributes:
        header: its header.
        colorspace: `YCbCr`, `RGB` or `Gray`.
    """

    header: JpegHeader
    colorspace: str


class DecodedJpeg(NamedTuple):
    """What libjpeg-turbo made of a JPEG.

    Attributes:
        data: the bytes that were decoded: the file's, or those of the repaired file, which has the same pixels.
        pixels: uint8, as `simplejpeg.decode_jpeg` returns them; None if libjpeg warns of something that can be neither
            repaired nor called damage. Pillow, which takes no notice of warnings, then decides.
        remark: what is wrong with the file's bytes, such as `no end mark`; None if nothing is.
    """

    data: bytes
    pixels: Pixels | None
    remark: str | None


def read_ordinary_jpeg(data: bytes) -> OrdinaryJpeg | None:
    """Read the header of an ordinary JPEG: baseline, extended or progressive, of 8 bits, grey or of three colours.

    Returns:
        The header; None if Pillow has to decode the image: another format, an odd kind of JPEG, CMYK, or a sampling
        that libjpeg-turbo's simple interface does not support.

    Raises:
        ImageError: the header of a JPEG is damaged, or the image is too large.
    """
    if not data.startswith(JPEG_START):
        return None
    header = check_jpeg_header(data)
    if header.oddity is not None:
        return None
    try:
        colorspace = simplejpeg.decode_jpeg_header(data, strict=False)[2]
    except (ValueError, KeyError):  # KeyError: a colour space or a sampling that simplejpeg does not know
        return None
    return None if colorspace in ("CMYK", "YCCK") else OrdinaryJpeg(header, colorspace)


def check_jpeg_header(data: bytes) -> JpegHeader:
    """Read the header of a JPEG.

    Raises:
        ImageError: the header is damaged, or the image is too large.
    """
    try:
        return read_jpeg_header(data)
    except JpegHeaderError as error:
        raise ImageError(f"not a readable image: {error}") from error


def decode(data: bytes) -> Pixels:
    """Decode a whole image: uint8 [H, W, 3], RGB.

    Raises:
        ImageError: the image is truncated, damaged, too large, or no image.
    """
    pixels = None
    if read_ordinary_jpeg(data) is not None:
        pixels = decode_ordinary_jpeg(data, colorspace="RGB").pixels
    return decode_with_pillow(data)[0] if pixels is None else pixels


def decode_ordinary_jpeg(data: bytes, **options: Any) -> DecodedJpeg:
    """Decode a JPEG so that each warning of libjpeg counts, and repair faults that change no pixel.

    Args:
        data: the file, of which `read_ordinary_jpeg` has read the header.
        options: arguments of `simplejpeg.decode_jpeg`.

    Raises:
        ImageError: data is missing or damaged.
    """
    remarks: list[str] = []
    warning = ""
    for _ in range(_MOST_REPAIRS):
        try:
            return DecodedJpeg(data, simplejpeg.decode_jpeg(data, **options), ", ".join(remarks) or None)
        except ValueError as error:
            warning = str(error)
        repaired = _repair(data, warning)
        if repaired == data:
            break
        remarks.append("no end mark" if repaired.startswith(data) else warning)
        data = repaired
    if any(text in warning for text in _DAMAGE):
        raise ImageError(f"truncated or damaged JPEG: {warning}")
    return DecodedJpeg(data, None, ", ".join([*remarks, warning]))


def _repair(data: bytes, warning: str) -> bytes:
    """Remove the cause of a warning that does not concern the pixels; return `data` if it is another warning."""
    if "Premature end of JPEG file" in warning and not data.endswith(_END_OF_IMAGE):
        return data + _END_OF_IMAGE
    if "extraneous bytes before marker" not in warning and _BAD_PROFILE not in warning:
        return data
    segments = check_jpeg_header(data).segments
    parts = [data[segment.start : segment.end] for segment in segments]
    if _BAD_PROFILE in warning:
        parts = [part for part in parts if not (part[1] == _APP2 and part[4:].startswith(_PROFILE))]
    return b"".join([JPEG_START[:2], *parts, data[segments[-1].end :]])


def decode_with_pillow(data: bytes) -> tuple[Pixels, str]:
    """Decode an image of any format by Pillow.

    Transparency becomes white, and 16-bit values keep their upper 8 bits. The orientation in EXIF is not applied.

    Returns:
        The pixels, uint8 [H, W, 3], RGB; and the format with what is lost, such as `CMYK JPEG` or `PNG, EXIF
        orientation 3 dropped`.

    Raises:
        ImageError: Pillow cannot read the image, or the image is too large.
    """
    from PIL import Image, UnidentifiedImageError

    header = check_jpeg_header(data) if data.startswith(JPEG_START) else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(*image.size)
                if header is not None and image.size != (header.width, header.height):
                    raise ImageError(
                        f"Pillow reads {image.width} x {image.height} pixels, the header gives {header.width} x "
                        f"{header.height}"
                    )
                image.verify()  # compares the checksums of a PNG, which loading does not
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                orientation = describe_orientation(image) if image.format == "TIFF" else None  # `load` removes it
                # Before all else: other methods of Pillow load the image too, and an image loads without an error if
                # the error of an earlier attempt was ignored.
                image.load()
                oddity = f"{image.mode} {image.format}" if image.format == "JPEG" else str(image.format)
                oddity = ", ".join(filter(None, (oddity, orientation or describe_orientation(image))))
                return _flatten(image), oddity
    except (ImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its message holds a memory address, and the manifest keeps the reason
        raise ImageError(describe_text(data) or f"not an image in any of the formats {', '.join(FORMATS)}") from error
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions on damaged bytes
        raise ImageError(f"not a readable image: {error}") from error


def _check_size(width: int, height: int) -> None:
    """Refuse an image that is too large; `read_jpeg_header` has the same limits.

    Raises:
        ImageError: it has too many pixels, or a side that a JPEG cannot have.
    """
    if width * height > MAX_PIXELS:
        raise ImageError(f"{width} x {height} pixels are more than the {MAX_PIXELS:,} allowed")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{width} x {height} pixels: a side is longer than the {MAX_SIDE:,} pixels of a JPEG")


def _flatten(image: Image.Image) -> Pixels:
    """Convert a loaded image to uint8 [H, W, 3], RGB, strip by strip.

    Raises:
        ImageError: the pixels have 32 bits, whose range of values is not defined.
    """
    if image.mode in ("I", "F"):
        raise ImageError(f"pixels of kind {image.mode} (32 bits) have no range of their own. Make it an 8-bit image.")
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        pixels[top:bottom] = np.asarray(_flatten_strip(image.crop((0, top, image.width, bottom))))
    return pixels


def _flatten_strip(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB: transparency becomes white, and 16-bit values keep their upper 8 bits."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def describe_orientation(image: Image.Image) -> str | None:
    """Describe the EXIF orientation of an image that is not upright; None for any other."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow's EXIF parser raises many kinds of exceptions on damaged bytes
        return None
    return f"EXIF orientation {orientation} dropped" if orientation in _NOT_UPRIGHT else None
