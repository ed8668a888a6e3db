"""A rectangle of a JPEG by a decoder of our own: libjpeg-turbo's pixels, bit for bit, in two thirds of its time.

Libjpeg-turbo, as wheels hold it, transforms and colours every block down to the last row that is wanted. This one does
so only inside of the rectangle, and finds its way through the rest several symbols at a time (`region.c`,
`huffman.h`, `pixels.h`). It is built when the package is installed, where there is a C compiler; where there
is none, and for JPEGs of other kinds, `decode` leaves the work to libjpeg-turbo, with the same result.
"""

import ctypes
import importlib.util
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


def _load() -> Callable[..., int] | None:
    """The function in C, if it was built."""
    found = importlib.util.find_spec("._region", __package__)
    if found is None or found.origin is None:
        return None
    function = ctypes.CDLL(found.origin).jpeg_region
    numbers = [ctypes.c_int] * 4
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, *numbers, ctypes.c_void_p, ctypes.c_int]
    return function


_decode = _load()


def is_built() -> bool:
    """Whether the decoder is there."""
    return _decode is not None


def decode(
    encoded: bytes, top: int, left: int, height: int, width: int, *, plain: bool = False
) -> NDArray[np.uint8] | None:
    """Pixels of a rectangle, with colour samples repeated rather than smoothed.

    Args:
        encoded: content of a JPEG file whose colours are YCbCr.
        top: first row.
        left: first column.
        height: rows.
        width: columns.
        plain: leave the processor's vector instructions alone, as on processors that have none; for tests.

    Returns:
        uint8 [height, width, 3], RGB; or None where another decoder has to do it: the file is damaged or of another
        kind (progressive, not of three components, unusual sampling), or this one was not built.
    """
    if _decode is None:
        return None
    out = np.empty((height, width, 3), np.uint8)
    problem = _decode(encoded, len(encoded), top, left, height, width, out.ctypes.data, plain)
    return None if problem else out
