"""From encoded bytes to pixels. No torch: loader workers import this module."""

import io
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from pipeline.augment.jpeg import region as jpeg_region

Pixels = NDArray[np.uint8]
"""uint8 [H, W, 3], RGB."""
_ROWS = 16
"""A smaller height is written as a multiple of this, the usual height of an MCU."""


def as_pixels(array: Any) -> Pixels:
    """Give the result of an OpenCV function the type `Pixels`: OpenCV's annotations leave the dtype open."""
    return array


class DecodeError(ValueError):
    """No decoder can decode the bytes as an image."""


class EncodedImage:
    """An encoded image, of which the size is known and any part can be decoded.

    `jpeg.region` and libjpeg-turbo decode JPEGs, Pillow decodes all other formats and CMYK JPEGs. All results are RGB.

    Attributes:
        height: height in pixels.
        width: width in pixels.
    """

    def __init__(self, encoded: bytes) -> None:
        """Read the size from the header; an image that Pillow decodes is decoded here.

        Args:
            encoded: content of an image file.

        Raises:
            DecodeError: no decoder can read the file.
        """
        self._encoded, self._pixels = encoded, None
        try:
            height, width, space, _ = simplejpeg.decode_jpeg_header(encoded, strict=False)
            self.height, self.width = int(height), int(width)
        except (ValueError, KeyError):  # KeyError: a header without an image
            space = "not a JPEG"
        self._is_ycbcr = space == "YCbCr"
        if space in ("CMYK", "YCCK", "not a JPEG"):
            self._pixels = np.array(read_with_pillow(encoded))
            self.height, self.width = self._pixels.shape[:2]

    def pixels(self) -> Pixels:
        """Decode the whole image: uint8 [height, width, 3].

        Raises:
            DecodeError: the data behind the header cannot be decoded.
        """
        return self._decode(self._encoded) if self._pixels is None else self._pixels

    def crop(self, top: int, left: int, height: int, width: int, enough: int) -> Pixels:
        """Decode a rectangle of the image, at a reduced size where that still leaves enough pixels.

        Where the format allows it, only the rectangle is decoded (by `jpeg.region`), or else only the rows down to its
        bottom. Chroma samples are repeated rather than interpolated, which changes the result by about 0.1 grey
        levels. A rectangle with at least twice `enough` pixels on both sides is decoded at a half, a quarter or an
        eighth of its size, which libjpeg-turbo does several times faster. If it begins between two pixels of the
        reduced image, its pixels are interpolated bicubically.

        Args:
            top: first row.
            left: first column.
            height: number of rows.
            width: number of columns.
            enough: number of pixels that the caller needs on each side.

        Returns:
            uint8 [H, W, 3]: `height` x `width` pixels, or a half, a quarter or an eighth of that on both sides.

        Raises:
            DecodeError: the data behind the header cannot be decoded.
        """
        bottom = top + height
        if self._pixels is not None:
            return self._pixels[top:bottom, left : left + width]
        reduction = 1
        while reduction < 8 and min(height, width) >= 2 * reduction * enough:
            reduction *= 2
        if reduction == 1:
            region = jpeg_region.decode(self._encoded, top, left, height, width) if self._is_ycbcr else None
            if region is not None:
                return region
            return self._decode(self._rows(bottom), smooth=False)[top:bottom, left : left + width]
        return _crop_reduced(self._decode(self._encoded, reduction), top, left, height, width, reduction)

    def _rows(self, bottom: int) -> bytes | bytearray:
        """Return the file with a smaller height in its header, so that the decoder stops at or just below `bottom`."""
        end = -(-bottom // _ROWS) * _ROWS
        position = _height_position(self._encoded) if end < self.height else None
        if position is None:
            return self._encoded
        shorter = bytearray(self._encoded)
        shorter[position : position + 2] = end.to_bytes(2, "big")
        return shorter

    def _decode(self, encoded: bytes | bytearray, reduction: int = 1, *, smooth: bool = True) -> Pixels:
        """Decode a whole JPEG with libjpeg-turbo.

        Args:
            encoded: the file, or the file with a smaller height in its header.
            reduction: 1, 2, 4 or 8; divides the size.
            smooth: whether chroma samples are interpolated ("fancy upsampling"); only for reduction 1.
        """
        try:
            if reduction == 1:
                return simplejpeg.decode_jpeg(encoded, "RGB", fastupsample=not smooth, strict=False)
            height, width = self.height // reduction, self.width // reduction
            return simplejpeg.decode_jpeg(
                encoded, "RGB", min_height=height, min_width=width, min_factor=reduction, strict=False
            )
        except ValueError as error:
            raise DecodeError(f"cannot be decoded: {error}") from error


def _crop_reduced(reduced: Pixels, top: int, left: int, height: int, width: int, reduction: int) -> Pixels:
    """Cut a rectangle, given in pixels of the whole image, out of the image at a reduced size."""
    (row, down), (column, across) = divmod(top, reduction), divmod(left, reduction)
    rows, columns = height // reduction, width // reduction
    if not down and not across:
        return reduced[row : row + rows, column : column + columns]
    # The filter reads one pixel before and two behind each; it repeats those at the edge of what it is given.
    first_row, first_column = max(row - 1, 0), max(column - 1, 0)
    around = reduced[first_row : row + rows + 2, first_column : column + columns + 2]
    vertical, horizontal = _bicubic_taps(down / reduction), _bicubic_taps(across / reduction)
    shifted = cv2.sepFilter2D(around, -1, horizontal, vertical, anchor=(1, 1), borderType=cv2.BORDER_REPLICATE)
    row, column = row - first_row, column - first_column
    return as_pixels(shifted[row : row + rows, column : column + columns])


@lru_cache
def _bicubic_taps(fraction: float) -> NDArray[np.float32]:
    """Weights of the pixels at -1, 0, 1 and 2 for a value at `fraction` in [0, 1): float32 [4].

    Source: R. Keys, "Cubic convolution interpolation for digital image processing", 1981, with OpenCV's a = -0.75.
    """
    a, x = -0.75, np.abs(np.arange(-1, 3) - fraction)
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x < 1, near, far).astype(np.float32)


def _height_position(encoded: bytes) -> int | None:
    """Find the height field of a sequential JPEG; None in a progressive one, where each row needs all scans."""
    at = 2
    while at + 9 < len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker in (0xC0, 0xC1):
            return at + 5
        if (0xC2 <= marker <= 0xCF and marker not in (0xC4, 0xCC)) or marker == 0xDA:
            return None
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None


def read_with_pillow(encoded: bytes) -> Image.Image:
    """Decode an image of any format as RGB.

    Raises:
        DecodeError: Pillow cannot decode the file. Its decoders raise exceptions of many types for damaged data, so
            all of them count, except the lack of memory.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:
        raise DecodeError(f"cannot be decoded: {error}") from error
