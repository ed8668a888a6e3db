"""Photographs that the tests of the augmentation share."""

import cv2
import numpy as np
import pytest

from tests.support import SAMPLE
from tests.support.small_shards import photograph


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    """Photographs of ImageNet where the machine has them, else generated ones, blurred as by a lens."""
    files = sorted(SAMPLE.glob("*/*.JPEG"))[::50]
    return [file.read_bytes() for file in files] or [soft(photograph(n, 300 + 20 * n, 340)) for n in range(4)]


def soft(encoded: bytes) -> bytes:
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    return cv2.imencode(".jpg", cv2.GaussianBlur(pixels, (3, 3), 0.8))[1].tobytes()
