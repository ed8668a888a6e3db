"""A source that changes between its listing and its packing, and file systems that refuse."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sharding import SourceError
from sharding.build import BuildOptions, build
from tests.sharding.builds import digests, faults_of, pack
from tests.sharding.synthetic import photograph, write_class_folders


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (Path.unlink, "cat/1.jpg is gone since the source was listed. Restore it and give the same command again"),
        (lambda path: path.rename(path.parent.parent / "dog/9.jpg"), "cat/1.jpg is gone since"),
        (lambda path: path.write_bytes(photograph(9, 90, 80)), r"had [\d,]+ when the source was listed"),
        (lambda path: shutil.rmtree(path.parent), "cat/[0-9].jpg is gone since"),
    ],
)
def test_a_source_that_changes_during_a_build_is_refused_and_the_old_one_resumes(
    change: Callable[[Path], object], words: str, tmp_path: Path
):
    write_class_folders(tmp_path / "source/train", {"cat": 3, "dog": 2})
    copy = shutil.copytree(tmp_path / "source", tmp_path / "copy")
    pack(copy, tmp_path / "expected")
    options = BuildOptions(source=str(tmp_path / "source"), output=str(tmp_path / "shards"), shard_mb=1, workers=1)

    def when_listed(line: str) -> None:
        if "images of" in line:
            change(tmp_path / "source/train/cat/1.jpg")

    with pytest.raises(SourceError, match=words):
        build(options, log=when_listed)
    assert not list((tmp_path / "shards").glob("*.json"))
    shutil.rmtree(tmp_path / "source")
    shutil.move(copy, tmp_path / "source")
    build(options)
    assert digests(tmp_path / "shards") == digests(tmp_path / "expected")


def test_a_file_that_is_added_during_a_build_is_not_half_packed(tmp_path: Path):
    write_class_folders(tmp_path / "source/train", {"cat": 3})
    options = BuildOptions(source=str(tmp_path / "source"), output=str(tmp_path / "shards"), shard_mb=1, workers=1)
    path = tmp_path / "source/train/cat/9.jpg"
    (manifest,) = build(options, log=lambda line: "images of" in line and path.write_bytes(photograph(9)))
    assert manifest.num_samples == 3
    assert faults_of(tmp_path / "shards") == []


def test_a_file_system_without_locks_gives_the_same_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_class_folders(tmp_path / "source/train", {"cat": 3, "dog": 2})
    pack(tmp_path / "source", tmp_path / "expected")

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    pack(tmp_path / "source", tmp_path / "shards")
    assert digests(tmp_path / "shards") == digests(tmp_path / "expected")
