"""The decoder of rectangles gives libjpeg-turbo's pixels, or None for a kind of JPEG that it does not decode."""

import io
import random

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile

from pipeline.augment.decode import EncodedImage
from pipeline.augment.jpeg import region as jpeg_region

pytestmark = pytest.mark.skipif(
    not jpeg_region.is_built(), reason="the decoder is built when the package is installed, with a C compiler"
)
ImageFile.MAXBLOCK = 1 << 20  # Pillow's encoder needs room for many restart markers
SIZES = [(1, 1), (7, 13), (16, 16), (65, 33), (250, 333)]


def picture(height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Smooth shapes and noise, which give blocks with no, few and many coefficients."""
    chance = np.random.default_rng(height * width)
    y, x = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    waves = 128 + 120 * np.sin(x / (9 + 3 * np.arange(3)) + y / (17 - 4 * np.arange(3)))
    waves += chance.normal(0, 40, (height, width, 3)) * (x > width // 2)
    return Image.fromarray(waves.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(height: int, width: int, mode: str = "RGB", **options) -> bytes:
    stream = io.BytesIO()
    picture(height, width, mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def boxes(height: int, width: int) -> list[tuple[int, int, int, int]]:
    """The whole image and twelve random rectangles: (top, left, height, width)."""
    chance = random.Random(height * width)
    some = [(0, 0, height, width)]
    for _ in range(12):
        top, left = chance.randrange(height), chance.randrange(width)
        some.append((top, left, chance.randint(1, height - top), chance.randint(1, width - left)))
    return some


@pytest.mark.parametrize("plain", [False, True], ids=["vectors", "plain"])
@pytest.mark.parametrize("restart", [0, 1, 5])
@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("quality", [3, 75, 100])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_the_same_bits_as_libjpeg_turbo(subsampling, quality, optimize, restart, plain):
    for height, width in SIZES:
        data = encoded(
            height,
            width,
            subsampling=subsampling,
            quality=quality,
            optimize=optimize,
            restart_marker_blocks=restart,
        )
        whole = simplejpeg.decode_jpeg(data, "RGB", fastupsample=True)
        for top, left, rows, columns in boxes(height, width):
            region = jpeg_region.decode(data, top, left, rows, columns, plain=plain)
            assert region is not None
            assert (region == whole[top : top + rows, left : left + columns]).all()


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"progressive": True}),
        ("RGB", {"keep_rgb": True}),
        ("L", {}),
        ("CMYK", {}),
        ("RGB", {"subsampling": "4:1:1"}),
    ],
)
def test_other_kinds_of_jpeg_are_left_to_the_other_decoder(mode, options):
    data = encoded(120, 90, mode, **options)
    image = EncodedImage(data)
    part = image.crop(30, 20, 50, 40, enough=64)
    assert np.abs(part.astype(int) - EncodedImage(data).pixels()[30:80, 20:60]).mean() < 4


def test_damaged_data_gives_none_or_pixels():
    chance = random.Random(0)
    whole = encoded(120, 90, quality=90)
    for _ in range(3000):
        data = bytearray(whole[: chance.randrange(len(whole))] if chance.random() < 0.2 else whole)
        for _ in range(chance.randint(1, 6)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        region = jpeg_region.decode(bytes(data), 10, 10, 100, 70)
        assert region is None or region.shape == (100, 70, 3)


def test_truncated_data_is_left_to_the_other_decoder():
    data = encoded(120, 90, quality=90)
    assert jpeg_region.decode(data[: len(data) // 2], 0, 0, 120, 90) is None
    assert jpeg_region.decode(data, 100, 0, 21, 90) is None
    assert jpeg_region.decode(b"", 0, 0, 1, 1) is None
