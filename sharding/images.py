"""Prepare one image for a shard: check that it is complete, convert unusual formats, make it smaller if asked."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from sharding.errors import ImageError
from sharding.jpeg_header import JPEG_START, JpegHeader, JpegHeaderError, Segment, read_jpeg_header

if TYPE_CHECKING:
    from PIL import Image
# Slightly more than the bytes of MAX_PIXELS without compression.
MAX_IMAGE_BYTES = 1 << 28
# Smaller than MAX_PIXELS, because Pillow holds several copies of an image in memory.
_MAX_CONVERTED_PIXELS = 1 << 24
# Largest result that is resized by way of twice its size, which takes 50 MB.
_MAX_DOUBLED_PIXELS = 1 << 22

# Parts of libjpeg's warnings about image data that is missing or damaged.
_DAMAGE = ("Premature end", "premature end", "bad Huffman code", "Corrupt JPEG data: bad")
# Formats that Pillow may read here.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_CONVERTED_QUALITY = 95
_APP1 = 0xE1
_END_OF_IMAGE = b"\xff\xd9"
_EXIF = b"Exif\0\0"
_ORIENTATION = 0x0112
_NOT_UPRIGHT = range(2, 9)  # values of the tag; 1 is upright, and some cameras write 0


@dataclass(frozen=True, kw_only=True)
class ImagePolicy:
    """How to check and convert each image.

    Attributes:
        shorter_side: re-encode images whose shorter side is longer than this, in pixels; None keeps the original bytes.
        quality: JPEG quality of re-encoded images, 1 to 100.
        decode_check: whether to decode each image once to prove that it is complete.
    """

    shorter_side: int | None = None
    quality: int = 90
    decode_check: bool = True


class PackedImage(NamedTuple):
    """An image as it is stored.

    Attributes:
        data: JPEG bytes.
        width: width in pixels.
        height: height in pixels.
        oddity: what was unusual about the original, such as `CMYK JPEG`; None if nothing was.
    """

    data: bytes
    width: int
    height: int
    oddity: str | None = None


def pack_image(data: bytes, policy: ImagePolicy) -> PackedImage:
    """Check one encoded image and return the bytes to store.

    Raises:
        ImageError: the image is empty, truncated, damaged, too large, or no image.
    """
    if not data:
        raise ImageError("the file is empty")
    if not data.startswith(JPEG_START):
        return _shrink(_convert(data), policy)
    header = check_jpeg_header(data)
    if header.oddity is not None:
        return _shrink(_convert_odd_jpeg(data, header), policy)
    try:
        colorspace = simplejpeg.decode_jpeg_header(data)[2]
    except ValueError:
        return _shrink(_convert(data), policy)
    if colorspace in ("CMYK", "YCCK"):
        return _shrink(_convert(data), policy)
    oddity = None
    cleaned = _without_broken_exif(data, header)
    if cleaned is not data:
        data, oddity = cleaned, "broken EXIF"
    packed = PackedImage(data, header.width, header.height, oddity)
    if policy.shorter_side is not None and min(header.width, header.height) > policy.shorter_side:
        return _shrink(packed, policy)
    return _check_whole(packed) if policy.decode_check else packed


def check_jpeg_header(data: bytes) -> JpegHeader:
    """Read the header of a JPEG.

    Raises:
        ImageError: the header is damaged, or the image has too many pixels.
    """
    try:
        return read_jpeg_header(data)
    except JpegHeaderError as error:
        raise ImageError(f"not a readable image: {error}") from error


@contextlib.contextmanager
def resize_in_one_thread(policy: ImagePolicy) -> Iterator[None]:
    """Keep OpenCV from starting threads: there is one worker process for each CPU already."""
    if policy.shorter_side is None:
        yield
        return
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def _check_whole(image: PackedImage) -> PackedImage:
    """Decode a JPEG at an eighth of its size, which reads all its coefficients and computes few pixels.

    Returns:
        The image unchanged if libjpeg gives no warning; with an end mark added if only that was missing; re-encoded,
        so that strict readers accept it, if libjpeg's warning is not about missing or damaged data.

    Raises:
        ImageError: the image is truncated or damaged.
    """
    warning = _decoder_warning(image.data)
    if warning is None:
        return image
    with_end_mark = image.data + _END_OF_IMAGE
    if "Premature end of JPEG file" in warning and _decoder_warning(with_end_mark) is None:
        return image._replace(data=with_end_mark, oddity=image.oddity or "no end mark")
    if any(text in warning for text in _DAMAGE):
        raise ImageError(f"truncated or damaged JPEG: {warning}")
    return _convert(image.data)._replace(oddity=warning)


def _decoder_warning(data: bytes) -> str | None:
    """Decode a JPEG and return libjpeg's warning; None if there is none."""
    try:
        simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1)
    except ValueError as error:
        return str(error)
    return None


def _shrink(image: PackedImage, policy: ImagePolicy) -> PackedImage:
    """Re-encode an image so that its shorter side is `policy.shorter_side`; a smaller image stays as it is."""
    target = policy.shorter_side
    shorter = min(image.width, image.height)
    if target is None or shorter <= target:
        return image
    # libjpeg reduces by 2, 4 or 8 almost for nothing while it decodes.
    reduction = next(factor for factor in (8, 4, 2, 1) if shorter // factor >= target)
    least_height, least_width = -(-image.height // reduction), -(-image.width // reduction)
    try:
        pixels = simplejpeg.decode_jpeg(image.data, min_height=least_height, min_width=least_width)
    except ValueError:
        image = _check_whole(image)
        pixels = simplejpeg.decode_jpeg(image.data, min_height=least_height, min_width=least_width)
    width = max(target, round(image.width * target / shorter))
    height = max(target, round(image.height * target / shorter))
    pixels = resize_pixels(pixels, width, height)
    encoded = simplejpeg.encode_jpeg(pixels, quality=policy.quality, colorsubsampling="420")
    return PackedImage(encoded, width, height, image.oddity or _orientation_note(image.data))


def resize_pixels(pixels: NDArray[Any], width: int, height: int) -> NDArray[Any]:
    """Make an image smaller.

    Cubic interpolation to twice the size, then the mean over two by two pixels: closer to Pillow's antialiased filters
    than OpenCV's `INTER_AREA`, and twice as fast.

    Args:
        pixels: uint8 `[H, W, 3]`.
        width: width of the result in pixels.
        height: height of the result in pixels.
    """
    import cv2

    if pixels.shape[0] < 2 * height and width * height <= _MAX_DOUBLED_PIXELS:
        pixels = cv2.resize(pixels, (2 * width, 2 * height), interpolation=cv2.INTER_CUBIC)
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)


def _convert_odd_jpeg(data: bytes, header: JpegHeader) -> PackedImage:
    """Convert a JPEG whose header names an oddity, such as a lossless one, by Pillow.

    Raises:
        ImageError: Pillow cannot read the image.
    """
    try:
        packed = _convert(data)
    except ImageError as error:
        raise ImageError(f"{header.oddity}: {error}") from error
    return packed._replace(oddity=", ".join(filter(None, (header.oddity, _orientation_note(data)))))


def _convert(data: bytes) -> PackedImage:
    """Convert an image that is not an RGB or grey JPEG into an RGB JPEG, by Pillow.

    Raises:
        ImageError: Pillow cannot read the image, or it has too many pixels.
    """
    from PIL import Image, UnidentifiedImageError

    header = check_jpeg_header(data) if data.startswith(JPEG_START) else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                width, height = image.size
                if width * height > _MAX_CONVERTED_PIXELS:
                    raise ImageError(
                        f"{width} x {height} pixels are more than the {_MAX_CONVERTED_PIXELS:,} allowed for a "
                        "conversion to an RGB JPEG"
                    )
                if header is not None and image.size != (header.width, header.height):
                    raise ImageError(
                        f"Pillow reads {width} x {height} pixels, the header gives {header.width} x {header.height}"
                    )
                image.verify()  # compares the checksums of a PNG, which loading does not
            with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
                orientation = _describe_orientation(image) if image.format == "TIFF" else None  # `load` removes it
                # Before all else: other methods of Pillow load the image too, and an image loads without an error if
                # the error of an earlier attempt was ignored.
                image.load()
                oddity = f"{image.mode} {image.format}" if image.format == "JPEG" else str(image.format)
                oddity = ", ".join(filter(None, (oddity, orientation or _describe_orientation(image))))
                pixels = np.asarray(_flatten(image))
    except ImageError:
        raise
    except UnidentifiedImageError as error:  # its message holds a memory address, and the manifest keeps the reason
        raise ImageError(f"not an image in any of the formats {', '.join(_FORMATS)}") from error
    except Exception as error:  # Pillow's decoders raise many kinds of exceptions on damaged bytes
        raise ImageError(f"not a readable image: {error}") from error
    height, width = pixels.shape[:2]
    encoded = simplejpeg.encode_jpeg(pixels, quality=_CONVERTED_QUALITY, colorsubsampling="444")
    return PackedImage(encoded, width, height, oddity)


def _flatten(image: Image.Image) -> Image.Image:
    """Convert to 8-bit RGB: transparency becomes white, and 16-bit values keep their upper 8 bits.

    Raises:
        ImageError: the pixels have 32 bits, whose range of values is not defined.
    """
    if image.mode in ("I", "F"):
        raise ImageError(f"pixels of kind {image.mode} (32 bits) have no range of their own. Make it an 8-bit image.")
    if image.mode.startswith("I;16"):
        from PIL import Image

        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        from PIL import Image

        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _without_broken_exif(data: bytes, header: JpegHeader) -> bytes:
    """Cut the EXIF segments that cannot be parsed out of a JPEG; pixels do not change.

    Returns:
        The JPEG without these segments; `data` itself if there are none.
    """
    broken = [
        segment for segment in _exif_segments(data, header) if not _is_exif(data[segment.start + 10 : segment.end])
    ]
    if not broken:
        return data
    kept, position = [], 0
    for segment in broken:
        kept.append(data[position : segment.start])
        position = segment.end
    return b"".join([*kept, data[position:]])


def _exif_segments(data: bytes, header: JpegHeader) -> Iterator[Segment]:
    """The EXIF segments of a JPEG."""
    for segment in header.segments:
        if segment.marker == _APP1 and data[segment.start + 4 : segment.start + 10] == _EXIF:
            yield segment


def _orientation_note(data: bytes) -> str | None:
    """Describe the EXIF orientation that re-encoding a JPEG drops; None if the image is upright."""
    from PIL import Image

    if not any(_exif_segments(data, read_jpeg_header(data))):
        return None
    with contextlib.suppress(OSError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            return _describe_orientation(image)
    return None


def _describe_orientation(image: Image.Image) -> str | None:
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow's EXIF parser raises many kinds of exceptions on damaged bytes
        return None
    return f"EXIF orientation {orientation} dropped" if orientation in _NOT_UPRIGHT else None


def _is_exif(tiff: bytes) -> bool:
    """Whether the first directory of a TIFF header can be parsed and all its values lie inside the segment."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return False
    widths = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
    try:
        (offset,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, offset)
        for entry in range(entries):
            _, kind, count, value = struct.unpack_from(order + "HHII", tiff, offset + 2 + 12 * entry)
            size = widths.get(kind, 0) * count
            if kind not in widths or (size > 4 and value + size > len(tiff)):
                return False
    except struct.error:
        return False
    return True
