"""Reading manifests and indexes: what is missing, damaged or changed is named."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sharding import ManifestError, load_index, load_manifest
from sharding.index import IndexOptions, index
from sharding.verify import VerifyOptions, verify
from tests.sharding.builds import (
    pack,
)


def test_a_changed_manifest_or_index_is_refused(shards: Path):
    manifest = shards / "imagenet1k-train.json"
    content = manifest.read_text()
    manifest.write_text(content.replace('"samples": 60', '"samples": 59'))
    with pytest.raises(ManifestError, match="changed after it was written"):
        load_manifest(str(shards), "train")
    manifest.write_text(content)
    shutil.copy(shards / "imagenet1k-validation.parquet", shards / "imagenet1k-train.parquet")
    with pytest.raises(ManifestError, match=r"is not the index that imagenet1k-train.json was written with"):
        load_index(str(shards), load_manifest(str(shards), "train"))


def test_a_missing_folder_manifest_or_split_is_named(tmp_path: Path):
    with pytest.raises(ManifestError, match="there is no such folder"):
        load_manifest(str(tmp_path / "none"), "train")
    (tmp_path / "imagenet1k-train-0000.tar").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"python -m sharding.index --shards"):
        load_manifest(str(tmp_path), "train")
    with pytest.raises(ManifestError, match=r"python -m sharding.index --shards"):
        verify(VerifyOptions(shards=str(tmp_path)))
    with pytest.raises(ManifestError, match=r"no manifest \*-test.json"):
        load_manifest(str(tmp_path), "test")


def test_the_shards_of_an_unfinished_build_are_refused(source: str, tmp_path: Path):
    pack(source, tmp_path, task_index=0, task_count=2)
    for name in sorted(path.name for path in tmp_path.glob("*.tar"))[1:]:
        (tmp_path / name).unlink()  # no gap between the numbers
    for call in (
        lambda: index(IndexOptions(shards=str(tmp_path), workers=1)),
        lambda: load_manifest(str(tmp_path), "train"),
    ):
        with pytest.raises(ManifestError, match=r"unfinished build of imagenet1k-train.*sharding.build") as caught:
            call()
        assert "sharding.index" not in str(caught.value)
    assert not (tmp_path / "imagenet1k-train.json").exists()


def test_a_manifest_under_another_name_is_refused(finished: Path):
    for name in ("imagenet1k-copy.json", "other-train.json"):
        shutil.copy(finished / "imagenet1k-train.json", finished / name)
        with pytest.raises(ManifestError, match=rf"{name} is the manifest of imagenet1k-train: its name must be"):
            load_manifest(str(finished), "train")
        with pytest.raises(ManifestError, match="its name must be"):
            load_manifest(str(finished), "train", name="other")
        (finished / name).unlink()


def deeply_nested_manifest(folder: Path) -> None:
    (folder / "x-train.json").write_text('{"index_sha256": ' + "[" * 200_000)


def list_as_manifest(folder: Path) -> None:
    (folder / "x-train.json").write_text('["index_sha256"]')


@pytest.mark.parametrize("write", [deeply_nested_manifest, list_as_manifest])
def test_a_json_file_that_is_no_manifest_is_named(write: Callable[[Path], None], tmp_path: Path):
    write(tmp_path)
    with pytest.raises(ManifestError, match=r"x-train.json is not a manifest of shards"):
        load_manifest(str(tmp_path), "train")
