"""Prepare one image for a shard: check that it is complete, convert unusual formats, make it smaller if asked."""

from __future__ import annotations

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import simplejpeg
from numpy.typing import NDArray

from sharding.decoding import (
    check_jpeg_header,
    decode_ordinary_jpeg,
    decode_with_pillow,
    describe_orientation,
    read_ordinary_jpeg,
)
from sharding.errors import ImageError
from sharding.jpeg_header import JPEG_START, JpegHeader, Segment, read_jpeg_header

# Slightly more than the bytes of MAX_PIXELS without compression.
MAX_IMAGE_BYTES = 1 << 28
# Largest result that is resized by way of twice its size, which takes 50 MB.
_MAX_DOUBLED_PIXELS = 1 << 22

_CONVERTED_QUALITY = 95
_APP1 = 0xE1
_EXIF = b"Exif\0\0"


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
    jpeg = read_ordinary_jpeg(data)
    if jpeg is None:
        return _shrink(_convert(data), policy)
    header, oddity = jpeg.header, None
    cleaned = _without_broken_exif(data, header)
    if cleaned is not data:
        data, oddity = cleaned, "broken EXIF"
    packed = PackedImage(data, header.width, header.height, oddity)
    if policy.shorter_side is not None and min(header.width, header.height) > policy.shorter_side:
        return _shrink(packed, policy)
    return _check_whole(packed) if policy.decode_check else packed


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
        The image unchanged if libjpeg gives no warning; with bytes that libjpeg accepts if no pixel changes by that;
        re-encoded, so that strict readers accept it, if libjpeg warns of something else than missing or damaged data.

    Raises:
        ImageError: the image is truncated or damaged.
    """
    decoded = decode_ordinary_jpeg(image.data, colorspace="GRAY", min_height=1, min_width=1)
    if decoded.pixels is None:
        return _convert(image.data)._replace(oddity=decoded.remark)
    return image._replace(data=decoded.data, oddity=image.oddity or decoded.remark)


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


def _convert(data: bytes) -> PackedImage:
    """Convert an image that Pillow has to decode into an RGB JPEG.

    Raises:
        ImageError: Pillow cannot read the image, or it is too large.
    """
    kind = check_jpeg_header(data).oddity if data.startswith(JPEG_START) else None
    try:
        pixels, oddity = decode_with_pillow(data)
    except ImageError as error:
        raise (ImageError(f"{kind}: {error}") if kind else error) from error
    if kind is not None:
        oddity = ", ".join(filter(None, (kind, _orientation_note(data))))
    height, width = pixels.shape[:2]
    encoded = simplejpeg.encode_jpeg(pixels, quality=_CONVERTED_QUALITY, colorsubsampling="444")
    return PackedImage(encoded, width, height, oddity)


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
            return describe_orientation(image)
    return None


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
