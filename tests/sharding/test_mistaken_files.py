"""What people have in place of images and archives is named as what it is, in one line."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharding import ImageError, ManifestError, SourceError
from sharding.images import ImagePolicy, pack_image
from sharding.index import IndexOptions, index
from sharding.sources import list_split
from sharding.verify import VerifyOptions, verify
from tests.sharding import synthetic
from tests.sharding.builds import pack, run_build
from tests.sharding.synthetic import encode, photograph, train_images, validation_images, write_class_folders
from tests.support.torture import scene, wide_png

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d7a" * 16 + b"\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>" + b" " * 2000
ERROR = b"<?xml version='1.0' encoding='UTF-8'?><Error><Code>AccessDenied</Code></Error>"
MISTAKEN = [(POINTER, "pointer of Git LFS.*git lfs pull"), (PAGE, "web page"), (ERROR, "XML document")]


@pytest.mark.parametrize(("content", "name"), MISTAKEN, ids=["pointer", "page", "error"])
def test_pointers_pages_and_error_messages_are_named(content: bytes, name: str, tmp_path: Path):
    with pytest.raises(ImageError, match=name):
        pack_image(content, ImagePolicy())
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(content)
    with pytest.raises(SourceError, match=f"ILSVRC2012_img_train.tar is an? {name}"):
        list_split(str(tmp_path), "train")
    (tmp_path / "parquet").mkdir()
    (tmp_path / "parquet" / "train-00000-of-00001.parquet").write_bytes(content)
    with pytest.raises(SourceError, match=f"train-00000-of-00001.parquet is an? {name}"):
        list_split(str(tmp_path / "parquet"), "train")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "x-train-0.tar").write_bytes(content)
    with pytest.raises(ManifestError, match=name):
        index(IndexOptions(shards=str(tmp_path / "shards"), workers=1))


def test_a_row_of_parquet_without_an_image_is_an_unreadable_image(tmp_path: Path):
    source = synthetic.write_parquet(tmp_path / "parquet", train_images(2), validation_images(2))
    file = source / "data" / "train-00000-of-00002.parquet"
    table = pq.read_table(file)
    images = table["image"].to_pylist()
    images[0], images[1] = None, {**images[1], "bytes": None}
    column = pa.array(images, table["image"].type)
    pq.write_table(table.set_column(table.schema.get_field_index("image"), "image", column), file)
    with pytest.raises(SourceError, match=r"2 unreadable images:\n  data/train-00000.*: the file is empty"):
        pack(source, tmp_path / "out")
    (manifest,) = pack(source, tmp_path / "out", on_bad="skip")
    assert manifest.num_samples == 2 * len(synthetic.WNIDS) - 2
    assert [(entry.reason, entry.action) for entry in manifest.odd] == [("the file is empty", "skipped")] * 2


@pytest.mark.parametrize("target", ["..", "../..", "."])
def test_a_symbolic_link_that_leads_in_a_circle_is_refused_in_one_line(tmp_path: Path, target: str):
    write_class_folders(tmp_path / "train", {"cat": 2, "dog": 2})
    (tmp_path / "train" / "cat" / "again").symlink_to(target)
    done = run_build("--source", str(tmp_path), "--output", str(tmp_path / "out"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.endswith("such as cat/again, so that its images would come without end. Remove the links.")


def test_links_to_folders_elsewhere_are_followed(tmp_path: Path):
    write_class_folders(tmp_path / "elsewhere", {"cat": 2})
    write_class_folders(tmp_path / "source" / "train", {"dog": 2})
    (tmp_path / "source" / "train" / "cat").symlink_to(tmp_path / "elsewhere" / "cat")
    assert len(list_split(str(tmp_path / "source"), "train")) == 4


@pytest.mark.parametrize("files", [["dataset_dict.json"], ["state.json", "dataset_info.json"]])
def test_a_folder_of_save_to_disk_is_refused_with_the_way_to_parquet(tmp_path: Path, files: list[str]):
    for name in (*files, "data-00000-of-00001.arrow"):
        (tmp_path / name).write_bytes(b"{}")
    for split in ([], ["--split", "train"]):
        done = run_build("--source", str(tmp_path), "--output", str(tmp_path / "out"), *split)
        (line,) = done.stderr.splitlines()
        assert "was written by save_to_disk" in line
        assert ".to_parquet(" in line


def test_an_image_that_is_too_wide_for_a_jpeg_is_skipped(tmp_path: Path):
    """A side over 65,500 pixels, which ended the build in a traceback."""
    write_class_folders(tmp_path / "source" / "train", {"cat": 3})
    (tmp_path / "source" / "train" / "cat" / "wide.png").write_bytes(wide_png())
    wide = bytearray(photograph(0))
    at = wide.index(b"\xff\xc0") + 5
    wide[at : at + 4] = (4).to_bytes(2) + (65_501).to_bytes(2)
    (tmp_path / "source" / "train" / "cat" / "broad.jpg").write_bytes(wide)
    (manifest,) = pack(tmp_path / "source", tmp_path / "out", on_bad="skip", shorter_side=100)
    assert manifest.num_samples == 3
    assert sorted(entry.reason for entry in manifest.odd) == [
        "70000 x 4 pixels: a side is longer than the 65,500 pixels of a JPEG",
        "not a readable image: 65501 x 4 pixels: a side is longer than the 65,500 pixels of libjpeg",
    ]


def test_one_limit_of_pixels_holds_for_all_formats(tmp_path: Path):
    """Twenty million pixels are less than the limit, so a PNG of that size is packed as a JPEG of that size is."""
    large = scene("L").resize((5000, 4000))
    for form in ("PNG", "JPEG"):
        assert pack_image(encode(large, form), ImagePolicy()).width == 5000
    data = pack_image(encode(large, "PNG"), ImagePolicy()).data
    (tmp_path / "x-train-0.tar").write_bytes(synthetic.tar_bytes([("a.jpg", data), ("a.cls", b"0")]))
    index(IndexOptions(shards=str(tmp_path), workers=1))
    assert np.array_equal(verify(VerifyOptions(shards=str(tmp_path), workers=1)), [])
