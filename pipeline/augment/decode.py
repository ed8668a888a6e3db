"""From encoded bytes to pixels. No torch: loader workers import this module."""

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.augment.jpeg import region as jpeg_region
from sharding import ImageError
from sharding.decoding import decode, decode_with_pillow, read_ordinary_jpeg

Pixels = NDArray[np.uint8]
"""uint8 [H, W, 3], RGB."""
_ROWS = 16
"""A smaller height is written as a multiple of this, the usual height of an MCU."""
_HEIGHT_AT = 5
"""Position of the height in the segment of a frame."""


def as_pixels(array: Any) -> Pixels:
    """Give the result of an OpenCV function the type `Pixels`: OpenCV's annotations leave the dtype open."""
    return array


class DecodeError(ValueError):
    """No decoder can decode the bytes as an image."""


class EncodedImage:
    """An encoded image, of which the size is known and any part can be decoded.

    `jpeg.region` and libjpeg-turbo decode ordinary JPEGs, Pillow decodes all others. All results are RGB. Which files
    are images is decided by `sharding.decoding`, as for the build, the index and the served model; it reads the header
    of a JPEG before any decoder does.

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
            self._jpeg = read_ordinary_jpeg(encoded)
            if self._jpeg is None:
                self._pixels = decode_with_pillow(encoded)[0]
        except ImageError as error:
            raise DecodeError(f"cannot be decoded: {error}") from error
        if self._jpeg is not None:
            self.height, self.width = self._jpeg.header.height, self._jpeg.header.width
        elif self._pixels is not None:
            self.height, self.width = self._pixels.shape[:2]

    def pixels(self) -> Pixels:
        """Decode the whole image: uint8 [height, width, 3].

        Raises:
            DecodeError: the data behind the header cannot be decoded, or is missing or damaged.
        """
        if self._pixels is not None:
            return self._pixels
        try:
            return decode(self._encoded)
        except ImageError as error:
            raise DecodeError(f"cannot be decoded: {error}") from error

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
        if self._jpeg is not None:
            reduction = 1
            while reduction < 8 and min(height, width) >= 2 * reduction * enough:
                reduction *= 2
            try:
                if reduction > 1:
                    return _crop_reduced(self._reduced(reduction), top, left, height, width, reduction)
                if self._jpeg.colorspace == "YCbCr":
                    region = jpeg_region.decode(self._encoded, top, left, height, width)
                    if region is not None:
                        return region
                rows = simplejpeg.decode_jpeg(self._rows(bottom), "RGB", fastupsample=True, strict=False)
                return rows[top:bottom, left : left + width]
            except ValueError:
                pass  # a fault before the pixels, such as bytes between two segments: the whole image shows whether
        return self.pixels()[top:bottom, left : left + width]

    def _rows(self, bottom: int) -> bytes | bytearray:
        """Return the file with a smaller height in its header, so that the decoder stops at or just below `bottom`.

        A progressive file is returned unchanged: each of its rows needs all scans.
        """
        assert self._jpeg is not None
        end, header = -(-bottom // _ROWS) * _ROWS, self._jpeg.header
        if end >= self.height or header.kind == "progressive":
            return self._encoded
        shorter = bytearray(self._encoded)
        position = header.frame.start + _HEIGHT_AT
        shorter[position : position + 2] = end.to_bytes(2, "big")
        return shorter

    def _reduced(self, reduction: int) -> Pixels:
        """Decode the whole JPEG at a size that is divided by `reduction`: 2, 4 or 8."""
        height, width = self.height // reduction, self.width // reduction
        return simplejpeg.decode_jpeg(
            self._encoded, "RGB", min_height=height, min_width=width, min_factor=reduction, strict=False
        )


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
