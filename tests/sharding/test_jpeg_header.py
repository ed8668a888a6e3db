"""The headers of JPEGs are read before any C decoder sees the file."""

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sharding import ImageError, ManifestError
from sharding.images import ImagePolicy, pack_image
from sharding.index import IndexOptions, index
from sharding.jpeg_header import MAX_PIXELS, JpegHeaderError, read_jpeg_header
from tests.sharding.synthetic import encode, lossless_jpeg, photograph, picture, tar_bytes

SOUND = photograph(3)
FRAME = SOUND.index(b"\xff\xc0")
SCAN = SOUND.index(b"\xff\xda")


def changed(offset: int, content: bytes) -> bytes:
    """The sound JPEG with other bytes at a distance from its frame's marker."""
    start = FRAME + offset
    return SOUND[:start] + content + SOUND[start + len(content) :]


def test_the_frame_of_ordinary_jpegs():
    for data, kind, sampling in (
        (encode(picture(), "JPEG"), "baseline", ((2, 2), (1, 1), (1, 1))),
        (encode(picture(), "JPEG", progressive=True, subsampling=0), "progressive", ((1, 1),) * 3),
        (encode(picture().convert("L"), "JPEG"), "baseline", ((1, 1),)),
        (encode(picture().convert("CMYK"), "JPEG"), "baseline", ((1, 1),) * 4),
    ):
        header = read_jpeg_header(data)
        assert (header.kind, header.precision, header.sampling) == (kind, 8, sampling)
        assert (header.width, header.height) == (60, 44)
        assert header.oddity is None
        assert header.segments[0].start == 2
        assert data[header.segments[-1].start :][:2] == b"\xff\xda"


@pytest.mark.parametrize(
    ("data", "oddity"),
    [
        (lossless_jpeg(), "lossless JPEG"),
        (changed(1, b"\xc9"), "arithmetic-coded JPEG"),
        (changed(1, b"\xc5"), "hierarchical JPEG"),
        (changed(4, b"\x0c"), "12-bit JPEG"),
        (changed(1, b"\xc1"), None),
    ],
)
def test_oddities_of_a_frame(data: bytes, oddity: str | None):
    assert read_jpeg_header(data).oddity == oddity


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no JPEG"),
        (SOUND[:60], "ends after 60 bytes, inside the segment FF DB"),
        (SOUND[: FRAME + 1], "in its header"),
        (changed(2, b"\xff\xff"), "inside the segment FF C0"),
        (changed(2, b"\x00\x01"), "has 1 bytes"),
        (changed(2, b"\x00\x12"), "wrong length"),
        (changed(5, bytes(2)), "60 x 0 pixels"),
        (changed(5, struct.pack(">HH", 8192, 8193)), f"8193 x 8192 pixels are more than the {MAX_PIXELS:,} allowed"),
        (changed(11, b"\x00"), "sampling factors"),
        (changed(11, b"\x52"), "sampling factors"),
        (changed(1, b"\xd9"), "FF D9 in its header"),
        (changed(1, b"\xf7"), "unknown marker FF F7"),
        (SOUND[:FRAME] + lossless_jpeg()[2:15] + SOUND[FRAME:], "a second frame"),
        (SOUND[:2] + SOUND[SCAN:], "no frame"),
        (SOUND[: SCAN + 4] + b"\x09" + SOUND[SCAN + 5 :], "first scan has a wrong length"),
    ],
)
def test_damaged_headers_are_refused_with_the_reason(data: bytes, reason: str):
    with pytest.raises(JpegHeaderError, match=reason):
        read_jpeg_header(data)
    with pytest.raises(ImageError, match=reason if data else "the file is empty"):
        pack_image(data, ImagePolicy(decode_check=False))


def test_bytes_between_segments_are_skipped_as_libjpeg_does():
    filled = SOUND[:FRAME] + b"\x00\x07\xff\x00\xff\xd0\xff\xff" + SOUND[FRAME:]
    header = read_jpeg_header(filled)
    assert header[:5] == read_jpeg_header(SOUND)[:5]
    assert Image.open(io.BytesIO(filled)).size == (header.width, header.height)


def test_a_lossless_jpeg_is_rewritten_and_ends_no_process():
    """The decoder wrote its full size into a buffer of an eighth of it, hence the process of its own."""
    code = (
        "import sys; from sharding.images import ImagePolicy, pack_image; data = sys.stdin.buffer.read(); "
        "[pack_image(data, ImagePolicy(shorter_side=side)) for side in (None, 100) for _ in range(3)]; "
        "sys.stdout.buffer.write(pack_image(data, ImagePolicy()).data)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=lossless_jpeg(512, 512), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert read_jpeg_header(done.stdout).kind == "baseline"
    assert np.abs(np.asarray(Image.open(io.BytesIO(done.stdout)), np.int16) - 128).max() <= 1
    assert pack_image(lossless_jpeg(), ImagePolicy()).oddity == "lossless JPEG"


def test_kinds_that_pillow_cannot_read_are_refused_by_name():
    with pytest.raises(ImageError, match="12-bit JPEG: not "):
        pack_image(changed(4, b"\x0c"), ImagePolicy())


def test_the_index_refuses_jpegs_that_no_decoder_reads(tmp_path: Path):
    members = [("a.jpg", SOUND), ("a.cls", b"0"), ("b.jpg", changed(4, b"\x0c")), ("b.cls", b"0")]
    (tmp_path / "x-train-0.tar").write_bytes(tar_bytes(members))
    with pytest.raises(ManifestError, match=r"x-train-0.tar: b: 12-bit JPEG"):
        index(IndexOptions(shards=str(tmp_path), workers=1))
    (manifest,) = index(IndexOptions(shards=str(tmp_path), workers=1, on_bad="skip"))
    assert (manifest.num_samples, [entry.key for entry in manifest.odd]) == (1, ["b"])
