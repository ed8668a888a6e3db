"""Decode a rectangle of a JPEG: the pixels of libjpeg-turbo, bit for bit, in two thirds of its time.

The libjpeg-turbo in Python wheels computes the pixels of every block down to the last row of the rectangle. The decoder
here (`region.c`, `huffman.h`, `pixels.h`) computes only those inside the rectangle, and parses the other blocks several
symbols at a time. It is compiled when the package is installed, if there is a C compiler. Without it, and for JPEGs
that it does not support, the caller decodes with libjpeg-turbo and gets the same pixels.
"""

import ctypes
import importlib.util
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def _load() -> Callable[..., int] | None:
    """Load the C function; None if it was not compiled."""
    found = importlib.util.find_spec("._region", __package__)
    if found is None or found.origin is None:
        return None
    function = ctypes.CDLL(found.origin).jpeg_region
    numbers = [ctypes.c_int] * 4
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, *numbers, ctypes.c_void_p, ctypes.c_int]
    return function


_decode = _load()


def is_built() -> bool:
    """Return whether the decoder was compiled."""
    return _decode is not None


def decode(
    encoded: bytes, top: int, left: int, height: int, width: int, *, plain: bool = False
) -> NDArray[np.uint8] | None:
    """Decode a rectangle, with chroma samples repeated rather than interpolated.

    Args:
        encoded: content of a JPEG file with the colour space YCbCr.
        top: first row.
        left: first column.
        height: number of rows.
        width: number of columns.
        plain: whether to avoid vector instructions, as on processors without AVX2; for tests.

    Returns:
        uint8 [height, width, 3], RGB. None if another decoder has to decode the file: it is damaged or not supported
        (progressive, not three components, unusual sampling), or this decoder was not compiled.
    """
    if _decode is None:
        return None
    out = np.empty((height, width, 3), np.uint8)
    problem = _decode(encoded, len(encoded), top, left, height, width, out.ctypes.data, plain)
    return None if problem else out
