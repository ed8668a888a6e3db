"""From encoded bytes to pixels. No torch: loader workers import this."""

import io

import numpy as np
import simplejpeg
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""uint8 [H, W, 3], RGB."""


class DecodeError(ValueError):
    """The bytes are not an image that can be decoded."""


def decode(encoded: bytes) -> Pixels:
    """Decode an image to RGB: baseline and progressive JPEG by libjpeg-turbo, all else by Pillow.

    Args:
        encoded: content of a file; grey, CMYK and palette images are converted.

    Returns:
        uint8 [H, W, 3].

    Raises:
        DecodeError: no decoder reads it.
    """
    try:
        return simplejpeg.decode_jpeg(encoded, "RGB", strict=False)
    except ValueError:
        return _decode_with_pillow(encoded)


def _decode_with_pillow(encoded: bytes) -> Pixels:
    """What libjpeg-turbo does not turn into RGB: CMYK JPEGs, PNG and others."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DecodeError(f"cannot be decoded: {error}") from error
