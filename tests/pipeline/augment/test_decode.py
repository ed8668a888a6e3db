"""Decoding and cropping of every kind of image."""

import io

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from pipeline.augment.decode import DecodeError, EncodedImage
from tests.pipeline.augment.compare import distance
from tests.support.small_shards import photograph


def encoded(mode: str, format: str) -> bytes:
    sink = io.BytesIO()
    image = Image.fromarray(simplejpeg.decode_jpeg(photograph(1, 60, 50))).convert(mode)
    image.save(sink, format, **({"progressive": True, "subsampling": 0} if mode == "RGB" and format == "JPEG" else {}))
    return sink.getvalue()


def test_a_decoded_crop_equals_the_crop_of_the_decoded_image(photographs):
    for data in photographs:
        image, whole = EncodedImage(data), simplejpeg.decode_jpeg(data, fastupsample=True, strict=False)
        assert (image.height, image.width) == whole.shape[:2]
        for bottom in (17, 32, 100, image.height // 2, image.height - 20, image.height):
            crop = image.crop(bottom - 16, 5, 16, 40, 224)
            assert (crop == whole[bottom - 16 : bottom, 5:45]).all()


def test_a_large_crop_is_decoded_at_half_its_size():
    data = photograph(3, 901, 1203)
    half = EncodedImage(data).crop(100, 200, 800, 1000, 336)
    assert half.shape == (400, 500, 3)
    whole = EncodedImage(data).crop(100, 200, 800, 1000, 1000)
    assert whole.shape == (800, 1000, 3)
    assert distance(half, cv2.resize(whole, (500, 400), interpolation=cv2.INTER_AREA)) < 4


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("edge", [False, True], ids=["inside", "at the edge"])
def test_a_crop_at_a_reduced_size_begins_where_it_was_asked_to(reduction, edge):
    """Of soft waves: the mean of each square of pixels, at offsets between the pixels of the reduced image too."""
    y, x = np.arange(640)[:, None, None], np.arange(704)[None, :, None]
    waves = 128 + 55 * np.sin(x / (14 + np.arange(3))) + 55 * np.sin(y / (15 + np.arange(3)))
    data = simplejpeg.encode_jpeg(waves.astype(np.uint8), quality=98, colorsubsampling="444")
    image = EncodedImage(data)
    whole, size = image.pixels(), 512
    for top in range(reduction):
        for left in (0, 1, reduction - 1):
            down = 640 - size - top if edge else reduction * 4 + top
            right = left if edge else reduction * 3 + left
            crop = image.crop(down, right, size, size, size // reduction)
            means = whole[down : down + size, right : right + size].astype(float)
            means = means.reshape(size // reduction, reduction, size // reduction, reduction, 3).mean(axis=(1, 3))
            assert crop.shape == means.shape
            assert np.abs(crop - means).mean() < 1.5


@pytest.mark.parametrize(("mode", "format"), [("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "JPEG"), ("P", "PNG")])
def test_odd_images_become_rgb(mode, format):
    data = encoded(mode, format)
    image = EncodedImage(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert distance(image.pixels(), expected) < 1
    assert distance(image.crop(3, 4, 20, 30, 224), expected[3:23, 4:34]) < 1


@pytest.mark.parametrize("data", [b"", b"no image", photograph(0)[:20]])
def test_data_that_is_no_image_is_an_error(data):
    with pytest.raises(DecodeError, match="cannot be decoded"):
        EncodedImage(data).pixels()
