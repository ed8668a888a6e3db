"""How each image is prepared: checked, converted where unusual, made smaller where asked, refused where unreadable."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from sharding import (
    ImageError,
)
from sharding.images import ImagePolicy, pack_image, resize_pixels
from sharding.jpeg_header import MAX_PIXELS
from tests.sharding.synthetic import (
    encode,
    photograph,
    picture,
    smooth_picture,
)

PLAIN = ImagePolicy()


def exif_segment(tiff: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff


GOOD_EXIF = b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 3, 1, 6) + bytes(4)

# The segment declares 200 entries and ends after the first, as in some of ImageNet's files.
BROKEN_EXIF = b"II*\0" + struct.pack("<IHHHII", 8, 200, 0x0112, 3, 1, 6)


@pytest.mark.parametrize(
    "data",
    [photograph(1), encode(picture().convert("L"), "JPEG"), encode(picture(), "JPEG", progressive=True)],
    ids=["baseline", "grey", "progressive"],
)
def test_a_sound_jpeg_is_unchanged(data: bytes):
    packed = pack_image(data, PLAIN)
    assert packed.data is data
    assert (packed.width, packed.height) == Image.open(io.BytesIO(data)).size
    assert packed.oddity is None


@pytest.mark.parametrize(
    ("data", "oddity"),
    [
        (encode(picture().convert("CMYK"), "JPEG"), "CMYK JPEG"),
        (encode(picture(), "PNG"), "PNG"),
        (encode(picture().convert("P"), "GIF"), "GIF"),
        (encode(picture().convert("RGBA"), "WEBP", lossless=True), "WEBP"),
    ],
    ids=["cmyk", "png", "gif", "webp"],
)
def test_unusual_formats_become_rgb_jpegs_that_look_the_same(data: bytes, oddity: str):
    packed = pack_image(data, PLAIN)
    assert packed.oddity == oddity
    assert simplejpeg.decode_jpeg_header(packed.data)[2] == "YCbCr"
    original = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32)
    stored = np.asarray(Image.open(io.BytesIO(packed.data)), np.float32)
    assert np.abs(original - stored).mean() < 3
    assert pack_image(packed.data, PLAIN).data == packed.data


def test_broken_exif_is_cut_out_and_no_pixel_changes():
    sound = photograph(3)
    broken = sound[:2] + exif_segment(BROKEN_EXIF) + sound[2:]
    packed = pack_image(broken, PLAIN)
    assert packed.oddity == "broken EXIF"
    assert packed.data == sound


def test_a_missing_end_mark_is_added():
    sound = photograph(3)
    packed = pack_image(sound[:-2], PLAIN)
    assert (packed.data, packed.oddity) == (sound, "no end mark")


def test_a_jpeg_that_strict_readers_refuse_is_reencoded():
    sound = bytearray(photograph(3))
    scan = sound.index(b"\xff\xda")
    sound[scan + 4 + 2 * sound[scan + 4] + 2] = 0  # end of spectral selection
    for policy in (PLAIN, ImagePolicy(shorter_side=32)):
        packed = pack_image(bytes(sound), policy)
        assert "Invalid SOS parameters" in (packed.oddity or "")
        simplejpeg.decode_jpeg(packed.data)


def test_valid_exif_stays():
    sound = photograph(3)
    data = sound[:2] + exif_segment(GOOD_EXIF) + sound[2:]
    assert pack_image(data, PLAIN).data is data


def test_16_bit_pixels_keep_their_upper_8_bits():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for form in ("PNG", "TIFF"):
        packed = pack_image(encode(Image.fromarray(ramp), form), PLAIN)
        stored = np.asarray(Image.open(io.BytesIO(packed.data)).convert("L"), np.float32)
        assert np.abs(stored - (ramp >> 8)).max() <= 2


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bit_pixels_are_refused(kind: type):
    with pytest.raises(ImageError, match=r"pixels of kind [IF] \(32 bits\)"):
        pack_image(encode(Image.fromarray(np.ones((9, 9), kind)), "TIFF"), PLAIN)


def test_orientation_is_never_applied_and_is_reported_where_it_is_dropped():
    """Packing ignores the orientation, like the decoders of the trainer."""
    sound = smooth_picture(1, 400, 300)
    rotated = sound[:2] + exif_segment(GOOD_EXIF) + sound[2:]
    assert pack_image(rotated, PLAIN).data is rotated
    unknown = rotated.replace(GOOD_EXIF, GOOD_EXIF[:18] + bytes(1) + GOOD_EXIF[19:])
    assert pack_image(unknown, ImagePolicy(shorter_side=100)).oddity is None
    smaller, plain = (pack_image(data, ImagePolicy(shorter_side=100)) for data in (rotated, sound))
    assert (smaller.width, smaller.height, smaller.data) == (133, 100, plain.data)
    assert (smaller.oddity, plain.oddity) == ("EXIF orientation 6 dropped", None)
    exif = Image.Exif()
    exif[0x0112] = 3
    assert pack_image(encode(picture(), "PNG", exif=exif), PLAIN).oddity == "PNG, EXIF orientation 3 dropped"


def test_a_thousand_broken_exif_segments_are_cut_out():
    sound = photograph(3)
    assert pack_image(sound[:2] + exif_segment(b"XXXX") * 1500 + sound[2:], PLAIN).data == sound


def huge_png() -> bytes:
    """A PNG of 10,000 x 10,000 pixels in a hundred bytes."""
    data = bytearray(encode(Image.new("L", (1, 1)), "PNG"))
    data[16:24] = struct.pack(">II", 10_000, 10_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def huge_jpeg() -> bytes:
    data = bytearray(photograph(0))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    return bytes(data)


def corrupt(data: bytes) -> bytes:
    middle = len(data) * 3 // 4
    return data[:middle] + b"\xff\xd9" + data[middle + 2 :]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"no image" * 9, "not an image in any of the formats JPEG, PNG"),
        (photograph(0)[:-40], "truncated or damaged JPEG"),
        (photograph(0)[:60], "not a readable image"),
        (encode(picture(), "PNG")[:-300], "not a readable image"),
        (corrupt(photograph(0, 400, 400)), "truncated or damaged JPEG"),
        (huge_png(), f"10000 x 10000 pixels are more than the {MAX_PIXELS:,} allowed"),
        (huge_jpeg(), f"60000 x 60000 pixels are more than the {MAX_PIXELS:,} allowed"),
    ],
    ids=["empty", "text", "truncated", "header", "png", "corrupt", "png-bomb", "jpeg-bomb"],
)
def test_unreadable_images_are_refused_with_the_reason(data: bytes, reason: str):
    with pytest.raises(ImageError, match=reason):
        pack_image(data, PLAIN)


@pytest.mark.parametrize("tenth", range(1, 10))
def test_a_png_with_a_changed_byte_in_its_data_is_refused(tenth: int):
    pixels = np.add.outer(np.arange(100), np.arange(120))[:, :, None] + np.random.default_rng(0).integers(
        0, 36, (100, 120, 3)
    )
    data = bytearray(encode(Image.fromarray(pixels.astype(np.uint8)), "PNG"))
    assert pack_image(bytes(data), PLAIN).oddity == "PNG"
    data[len(data) * tenth // 10] ^= 0xFF
    with pytest.raises(ImageError, match="not a readable image"):
        pack_image(bytes(data), PLAIN)


def test_a_png_whose_pixels_end_early_is_refused():
    """Its checksums fit: the software that wrote it stopped in the middle and closed the file properly."""
    pixels = np.random.default_rng(0).integers(0, 256, (50, 60, 3), dtype=np.uint8)
    whole = encode(Image.fromarray(pixels), "PNG")
    start = whole.index(b"IDAT")
    content = b"IDAT" + whole[start + 4 : start + 4000]
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    with pytest.raises(ImageError, match="not a readable image"):
        pack_image(whole[: start - 4] + chunk + whole[-12:], PLAIN)


@pytest.mark.parametrize("form", ["PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_images_without_their_last_part_are_refused(form: str):
    data = encode(Image.open(io.BytesIO(photograph(5, 400, 300))), form)
    with pytest.raises(ImageError):
        pack_image(data[: len(data) * 9 // 10], PLAIN)


def test_without_decode_check_only_the_header_is_read():
    assert pack_image(photograph(0)[:-40], ImagePolicy(decode_check=False)).width == 60


@pytest.mark.parametrize(("width", "height"), [(1000, 700), (333, 1200), (400, 400), (401, 2000)])
def test_shorter_side_is_exact_and_nothing_is_enlarged(width: int, height: int):
    data = smooth_picture(1, width, height)
    packed = pack_image(data, ImagePolicy(shorter_side=400, quality=80))
    if min(width, height) <= 400:
        assert packed.data is data
        return
    assert min(packed.width, packed.height) == 400
    assert abs(packed.width / packed.height - width / height) < 0.005 * width / height
    stored = Image.open(io.BytesIO(packed.data))
    assert stored.size == (packed.width, packed.height)
    scaled = Image.open(io.BytesIO(data)).resize(stored.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(stored, np.float32) - np.asarray(scaled, np.float32)).mean() < 1.5


@pytest.mark.parametrize("side", [250, 330, 490])
def test_resizing_is_closer_to_lanczos_than_opencv_area_interpolation(side: int):
    pixels = cv2.GaussianBlur(np.random.default_rng(5).integers(0, 256, (500, 700, 3), dtype=np.uint8), (0, 0), 0.8)
    size = (side * 7 // 5, side)
    best = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS), np.float32)
    ours, areas = (
        np.square(shrunk - best).mean()
        for shrunk in (resize_pixels(pixels, *size), cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    )
    assert ours <= areas
