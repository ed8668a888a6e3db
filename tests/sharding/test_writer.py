"""The shards that are written: skipped, converted and re-encoded images in the tar and in the manifest."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from sharding import (
    SourceError,
)
from sharding.verify import VerifyOptions, verify
from tests.sharding.builds import (
    digests,
    flags,
    pack,
    run_build,
)
from tests.sharding.synthetic import (
    encode,
    photograph,
    picture,
    smooth_picture,
)


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """Ten sound images, one CMYK, one PNG named .JPEG, and two unreadable ones."""
    root = tmp_path / "spoiled"
    images = {f"a_{number}.JPEG": photograph(number) for number in range(10)}
    images |= {"a_cmyk.JPEG": encode(picture().convert("CMYK"), "JPEG"), "a_png.JPEG": encode(picture(), "PNG")}
    images |= {"a_short.JPEG": photograph(0)[:-100], "a_text.JPEG": b"no image"}
    (root / "a").mkdir(parents=True)
    for name, data in images.items():
        (root / "a" / name).write_bytes(data)
    return root


def test_unreadable_images_stop_the_build_and_are_all_named(spoiled: Path, tmp_path: Path):
    output = tmp_path / "out"
    done = run_build(*flags(spoiled, output))
    assert done.returncode == 1
    assert "2 unreadable images" in done.stderr
    assert "a/a_short.JPEG: truncated or damaged JPEG" in done.stderr
    assert "a/a_text.JPEG: not an image in any" in done.stderr
    assert "--on-bad skip" in done.stderr
    assert not [name for name in digests(output) if name.endswith((".tar", ".tmp", "train.json"))]


def test_skipped_and_converted_images_are_listed_in_the_manifest(spoiled: Path, tmp_path: Path):
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


def test_reencoded_images_have_the_quality_asked_for(tmp_path: Path):
    root = tmp_path / "large"
    (root / "a").mkdir(parents=True)
    (root / "a" / "a_0.JPEG").write_bytes(smooth_picture(0, 300, 300))
    for quality in (40, 95):
        (manifest,) = pack(root, tmp_path / str(quality), shorter_side=64, quality=quality)
        assert manifest.settings["quality"] == quality
        with tarfile.open(tmp_path / str(quality) / "imagenet1k-train-0000.tar") as archive:
            stored = Image.open(io.BytesIO(archive.extractfile("a_0.jpg").read()))
        plain = Image.open(io.BytesIO(simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8), quality=quality)))
        assert stored.quantization == plain.quantization


def test_reencoded_shards_are_smaller_and_have_no_fault(tmp_path: Path):

    root = tmp_path / "large"
    (root / "a").mkdir(parents=True)
    for number in range(4):
        (root / "a" / f"a_{number}.JPEG").write_bytes(smooth_picture(number, 900, 700))
    (manifest,) = pack(root, tmp_path / "out", shorter_side=256, quality=85)
    assert manifest.settings["shorter_side"] == 256
    assert verify(VerifyOptions(shards=str(tmp_path / "out"), workers=1)) == []
    assert manifest.shards[0].bytes < sum(path.stat().st_size for path in root.rglob("*.JPEG")) / 2
