"""What happens to each image: proved whole, converted where odd, made smaller where asked, refused where hopeless."""

import io
import json
import struct
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from sharding import ImageError, SourceError
from sharding.images import MAX_PIXELS, ImagePolicy, pack_image, resize_pixels
from tests.sharding.packing import command, contents, flags, pack
from tests.sharding.synthetic import photograph

PLAIN = ImagePolicy()


def encoded(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def picture() -> Image.Image:
    return Image.open(io.BytesIO(photograph(5))).convert("RGB")


def smooth(seed: int, width: int, height: int) -> bytes:
    """A picture without edges, in which only the size matters."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return encoded(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), "JPEG", quality=95)


def exif_segment(tiff: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff


GOOD_EXIF = b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0112, 3, 1, 6) + bytes(4)
# A directory of 200 entries in a segment that ends after the first, as in some of ImageNet's files.
BROKEN_EXIF = b"II*\0" + struct.pack("<IHHHII", 8, 200, 0x0112, 3, 1, 6)


@pytest.mark.parametrize(
    "data",
    [photograph(1), encoded(picture().convert("L"), "JPEG"), encoded(picture(), "JPEG", progressive=True)],
    ids=["baseline", "grey", "progressive"],
)
def test_a_sound_jpeg_goes_in_untouched(data: bytes):
    packed = pack_image(data, PLAIN)
    assert packed.data is data
    assert (packed.width, packed.height) == Image.open(io.BytesIO(data)).size
    assert packed.oddity is None


@pytest.mark.parametrize(
    ("data", "oddity"),
    [
        (encoded(picture().convert("CMYK"), "JPEG"), "CMYK JPEG"),
        (encoded(picture(), "PNG"), "PNG"),
        (encoded(picture().convert("P"), "GIF"), "GIF"),
        (encoded(picture().convert("RGBA"), "WEBP", lossless=True), "WEBP"),
    ],
    ids=["cmyk", "png", "gif", "webp"],
)
def test_odd_images_become_rgb_jpegs_that_look_the_same(data: bytes, oddity: str):
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


def test_a_jpeg_that_strict_readers_refuse_is_written_anew():
    sound = bytearray(photograph(3))
    scan = sound.index(b"\xff\xda")
    sound[scan + 4 + 2 * sound[scan + 4] + 2] = 0  # end of spectral selection
    for policy in (PLAIN, ImagePolicy(shorter_side=32)):
        packed = pack_image(bytes(sound), policy)
        assert "Invalid SOS parameters" in (packed.oddity or "")
        simplejpeg.decode_jpeg(packed.data)


def test_good_exif_stays():
    sound = photograph(3)
    data = sound[:2] + exif_segment(GOOD_EXIF) + sound[2:]
    assert pack_image(data, PLAIN).data is data


def test_16_bits_become_the_upper_8():
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for form in ("PNG", "TIFF"):
        packed = pack_image(encoded(Image.fromarray(ramp), form), PLAIN)
        stored = np.asarray(Image.open(io.BytesIO(packed.data)).convert("L"), np.float32)
        assert np.abs(stored - (ramp >> 8)).max() <= 2


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pixels_without_a_range_are_refused(kind: type):
    with pytest.raises(ImageError, match=r"pixels of kind [IF] \(32 bits\)"):
        pack_image(encoded(Image.fromarray(np.ones((9, 9), kind)), "TIFF"), PLAIN)


def test_orientation_is_never_applied_and_said_where_it_is_dropped():
    """The trainer's decoders, as most, take the pixels as they lie: packing does not turn them either."""
    sound = smooth(1, 400, 300)
    turned = sound[:2] + exif_segment(GOOD_EXIF) + sound[2:]
    assert pack_image(turned, PLAIN).data is turned
    unknown = turned.replace(GOOD_EXIF, GOOD_EXIF[:18] + bytes(1) + GOOD_EXIF[19:])
    assert pack_image(unknown, ImagePolicy(shorter_side=100)).oddity is None
    smaller, plain = (pack_image(data, ImagePolicy(shorter_side=100)) for data in (turned, sound))
    assert (smaller.width, smaller.height, smaller.data) == (133, 100, plain.data)
    assert (smaller.oddity, plain.oddity) == ("EXIF orientation 6 dropped", None)
    exif = Image.Exif()
    exif[0x0112] = 3
    assert pack_image(encoded(picture(), "PNG", exif=exif), PLAIN).oddity == "PNG, EXIF orientation 3 dropped"


def test_a_thousand_broken_exif_segments_are_cut_out():
    sound = photograph(3)
    assert pack_image(sound[:2] + exif_segment(b"XXXX") * 1500 + sound[2:], PLAIN).data == sound


def huge_png() -> bytes:
    """A PNG of 10,000 x 10,000 pixels in a hundred bytes."""
    data = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    data[16:24] = struct.pack(">II", 10_000, 10_000)
    import zlib

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
        (b"<html>404</html>" * 9, "not an image in any of the formats JPEG, PNG"),
        (photograph(0)[:-40], "truncated or damaged JPEG"),
        (photograph(0)[:60], "not a readable image"),
        (encoded(picture(), "PNG")[:-300], "not a readable image"),
        (corrupt(photograph(0, 400, 400)), "truncated or damaged JPEG"),
        (huge_png(), "10000 x 10000 pixels are more than the 16,777,216 allowed"),
        (huge_jpeg(), f"60000 x 60000 pixels are more than the {MAX_PIXELS:,} allowed"),
    ],
    ids=["empty", "html", "truncated", "header", "png", "corrupt", "png-bomb", "jpeg-bomb"],
)
def test_hopeless_images_are_refused_with_the_reason(data: bytes, reason: str):
    with pytest.raises(ImageError, match=reason):
        pack_image(data, PLAIN)


def test_no_decode_check_reads_headers_alone():
    assert pack_image(photograph(0)[:-40], ImagePolicy(decode_check=False)).width == 60


@pytest.mark.parametrize(("width", "height"), [(1000, 700), (333, 1200), (400, 400), (401, 2000)])
def test_shorter_side_is_exact_and_nothing_is_enlarged(width: int, height: int):
    data = smooth(1, width, height)
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
def test_shrinking_is_nearer_to_an_antialiased_filter_than_the_mean_over_areas(side: int):
    pixels = cv2.GaussianBlur(np.random.default_rng(5).integers(0, 256, (500, 700, 3), dtype=np.uint8), (0, 0), 0.8)
    size = (side * 7 // 5, side)
    best = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS), np.float32)
    ours, areas = (
        np.square(shrunk - best).mean()
        for shrunk in (resize_pixels(pixels, *size), cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))
    )
    assert ours <= areas


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """Ten sound images, one CMYK, one PNG named .JPEG, and two unreadable ones."""
    root = tmp_path / "spoiled"
    images = {f"a_{number}.JPEG": photograph(number) for number in range(10)}
    images |= {"a_cmyk.JPEG": encoded(picture().convert("CMYK"), "JPEG"), "a_png.JPEG": encoded(picture(), "PNG")}
    images |= {"a_short.JPEG": photograph(0)[:-100], "a_text.JPEG": b"no image"}
    (root / "a").mkdir(parents=True)
    for name, data in images.items():
        (root / "a" / name).write_bytes(data)
    return root


def test_unreadable_images_stop_the_build_and_are_all_named(spoiled: Path, tmp_path: Path):
    output = tmp_path / "out"
    done = command(*flags(spoiled, output))
    assert done.returncode == 1
    assert "2 unreadable images" in done.stderr
    assert "a/a_short.JPEG: truncated or damaged JPEG" in done.stderr
    assert "a/a_text.JPEG: not an image in any" in done.stderr
    assert "--on-bad skip" in done.stderr
    assert not [name for name in contents(output) if name.endswith((".tar", ".tmp", "train.json"))]


def test_skipped_and_converted_images_are_listed(spoiled: Path, tmp_path: Path):
    output = tmp_path / "out"
    with pytest.raises(SourceError):
        pack(spoiled, output)
    (manifest,) = pack(spoiled, output, on_bad="skip")
    assert manifest.num_samples == 12
    odd = {entry.key: (entry.action, entry.file) for entry in manifest.odd}
    assert odd == {
        "a_cmyk": ("converted", "a/a_cmyk.JPEG"),
        "a_png": ("converted", "a/a_png.JPEG"),
        "a_short": ("skipped", "a/a_short.JPEG"),
        "a_text": ("skipped", "a/a_text.JPEG"),
    }
    with tarfile.open(output / "imagenet1k-train-0000.tar") as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
    assert len(members) == 36
    assert json.loads(members["a_png.json"])["filename"] == "a_png.JPEG"
    assert members["a_png.jpg"][:3] == b"\xff\xd8\xff"


def test_quality_is_that_of_what_is_written(tmp_path: Path):
    root = tmp_path / "large"
    (root / "a").mkdir(parents=True)
    (root / "a" / "a_0.JPEG").write_bytes(smooth(0, 300, 300))
    for quality in (40, 95):
        (manifest,) = pack(root, tmp_path / str(quality), shorter_side=64, quality=quality)
        assert manifest.settings["quality"] == quality
        with tarfile.open(tmp_path / str(quality) / "imagenet1k-train-0000.tar") as archive:
            stored = Image.open(io.BytesIO(archive.extractfile("a_0.jpg").read()))
        plain = Image.open(io.BytesIO(simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8), quality=quality)))
        assert stored.quantization == plain.quantization


def test_reencoded_shards_are_smaller_and_verified(tmp_path: Path):
    from sharding.verify import VerifyOptions, verify

    root = tmp_path / "large"
    (root / "a").mkdir(parents=True)
    for number in range(4):
        (root / "a" / f"a_{number}.JPEG").write_bytes(smooth(number, 900, 700))
    (manifest,) = pack(root, tmp_path / "out", shorter_side=256, quality=85)
    assert manifest.settings["shorter_side"] == 256
    assert verify(VerifyOptions(shards=str(tmp_path / "out"), workers=1)) == []
    assert manifest.shards[0].bytes < sum(path.stat().st_size for path in root.rglob("*.JPEG")) / 2
