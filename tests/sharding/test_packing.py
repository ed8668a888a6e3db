"""Resume, lock and publish: a second build in the same output, during the first or after it."""

import dataclasses
import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import sharding.writer
from sharding import ManifestError, OutputError
from sharding.images import PackedImage
from sharding.shard_record import ShardRecord
from sharding.storage import Folder
from sharding.verify import VerifyOptions, verify
from tests.sharding import synthetic
from tests.sharding.builds import WORK_FOLDER, digests, pack
from tests.sharding.synthetic import (
    SOURCE_IMAGES,
    WNIDS,
    large_images,
    photograph,
    validation_images,
    write_class_folders,
    write_nameless_folders,
)

INFO = "_info.json"


@pytest.fixture
def during_build(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Calls a function once, while the third image is packed."""

    def call_at_third_image(action: Callable[[], None]) -> None:
        original, calls = sharding.writer.pack_image, []

        def pack_image(*arguments) -> PackedImage:
            calls.append(arguments)
            if len(calls) == 3:
                action()
            return original(*arguments)

        monkeypatch.setattr(sharding.writer, "pack_image", pack_image)

    return call_at_third_image


def test_a_build_with_another_number_of_tasks_keeps_temporary_files_in_use(
    during_build: Callable, source: str, reference: dict[str, str], tmp_path: Path
):
    (tmp_path / WORK_FOLDER).mkdir()
    killed = tmp_path / WORK_FOLDER / f".imagenet1k-train-0000.tar.{'0' * 32}.tmp"  # left by a killed build
    killed.write_bytes(b"half")
    seen = []

    def other() -> None:
        writing = {path.name for path in (tmp_path / WORK_FOLDER).glob("*.tar.*.tmp")}
        assert not pack(source, tmp_path, task_index=0, task_count=4)
        seen.append(writing & {path.name for path in (tmp_path / WORK_FOLDER).glob("*.tar.*.tmp")})

    during_build(other)
    assert not pack(source, tmp_path, task_index=0, task_count=3)
    assert [len(names) for names in seen] == [1]
    assert not killed.exists()
    for index in (1, 2):
        pack(source, tmp_path, task_index=index, task_count=3)
    assert digests(tmp_path) == reference


def test_a_split_that_another_build_publishes_meanwhile_is_complete(
    during_build: Callable, source: str, reference: dict[str, str], tmp_path: Path
):
    during_build(lambda: pack(source, tmp_path, task_index=0, task_count=1))
    (manifest,) = pack(source, tmp_path, task_index=0, task_count=2)
    assert manifest.num_samples == SOURCE_IMAGES
    assert digests(tmp_path) == reference


def test_a_second_build_of_the_same_task_is_refused_while_the_first_runs(
    during_build: Callable, source: str, reference: dict[str, str], tmp_path: Path
):
    refused = []

    def second_build() -> None:
        with pytest.raises(OutputError, match="another build is writing imagenet1k-train") as caught:
            pack(source, tmp_path)
        refused.append(caught)

    during_build(second_build)
    pack(source, tmp_path)
    assert len(refused) == 1
    assert digests(tmp_path) == reference


def test_the_work_folder_is_removed_after_the_lock_is_released(
    source: str, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    remove_folder, held = Folder.remove_folder, []

    def remove_folder_on_nfs(self: Folder, name: str) -> None:
        """NFS keeps an open file that is removed under another name, and therefore its folder."""
        for lock in Path(self.join(name)).glob("*.lock"):
            with open(lock, encoding="utf-8") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    held.append(lock)
                    raise OSError(errno.ENOTEMPTY, "Directory not empty", name) from None
        remove_folder(self, name)

    monkeypatch.setattr(Folder, "remove_folder", remove_folder_on_nfs)
    pack(source, tmp_path)
    assert not held
    assert digests(tmp_path) == reference
    Folder.open(str(tmp_path)).remove_folder(INFO)  # not a folder: removing it does nothing
    assert digests(tmp_path) == reference


def test_finished_shards_are_recognised_by_their_digests(source: str, reference: dict[str, str], tmp_path: Path):
    pack(source, tmp_path, task_index=0, task_count=2)
    finished = sorted(tmp_path.glob("*.tar"))
    damaged, sound = finished[0], finished[1]
    content = bytearray(damaged.read_bytes())
    content[5000] ^= 1
    damaged.write_bytes(content)
    inode = sound.stat().st_ino
    pack(source, tmp_path)
    assert digests(tmp_path) == reference
    assert sound.stat().st_ino == inode


def test_a_lost_shard_of_a_finished_split_is_written_again(source: str, reference: dict[str, str], finished: Path):
    first, second = sorted(finished.glob("*.tar"))[:2]
    first.unlink()
    inode = second.stat().st_ino
    pack(source, finished)
    assert digests(finished) == reference
    assert second.stat().st_ino == inode


def spoil_info(output: Path) -> None:
    (output / INFO).write_text("{}")


def lose_info(output: Path) -> None:
    (output / INFO).unlink()


def damage_index(output: Path) -> None:
    index = output / "imagenet1k-train.parquet"
    index.write_bytes(index.read_bytes()[:-100])


@pytest.mark.parametrize("spoil", [spoil_info, lose_info, damage_index])
def test_the_build_command_repairs_index_and_info_of_a_finished_split(
    spoil: Callable[[Path], None], source: str, reference: dict[str, str], finished: Path
):
    spoil(finished)
    pack(source, finished)
    assert digests(finished) == reference


def test_a_lost_index_of_a_finished_split_is_written_again(source: str, reference: dict[str, str], finished: Path):
    (finished / "imagenet1k-train.parquet").unlink()
    with pytest.raises(ManifestError, match=r"imagenet1k-train.parquet is missing"):
        verify(VerifyOptions(shards=str(finished)))
    pack(source, finished)
    assert digests(finished) == reference


def test_only_the_task_of_a_lost_shard_writes_it_again(source: str, reference: dict[str, str], finished: Path):
    (finished / "imagenet1k-train-0000.tar").unlink()
    assert not pack(source, finished, task_index=1, task_count=2)
    assert pack(source, finished, task_index=0, task_count=2)
    assert digests(finished) == reference


def test_a_shard_lost_during_the_build_prevents_publishing(source: str, reference: dict[str, str], tmp_path: Path):
    pack(source, tmp_path, task_index=0, task_count=2)
    (tmp_path / "imagenet1k-train-0000.tar").unlink()
    with pytest.raises(OutputError, match=r"imagenet1k-train-0000.tar is missing or has changed since it was packed"):
        pack(source, tmp_path, task_index=1, task_count=2)
    assert not (tmp_path / "imagenet1k-train.json").exists()
    pack(source, tmp_path)
    assert digests(tmp_path) == reference


def test_other_settings_in_the_same_output_are_refused_with_the_difference(source: str, tmp_path: Path):
    pack(source, tmp_path, task_index=0, task_count=2)  # not finished
    before = digests(tmp_path)
    with pytest.raises(OutputError, match="seed: 0 there, 1 here"):
        pack(source, tmp_path, seed=1)
    pack(source, tmp_path)
    with pytest.raises(OutputError, match="shorter_side: None there, 256 here"):
        pack(source, tmp_path, shorter_side=256)
    assert before.items() - {entry for entry in before.items() if ".parts" in entry[0]} <= digests(tmp_path).items()


def test_replacing_an_image_makes_it_another_source(tmp_path: Path):
    source = write_nameless_folders(tmp_path / "source")
    bad = next((source / "train").glob("*/*.JPEG"))
    bad.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 unreadable image:\n.*\n.*another --output"):
        pack(source, tmp_path / "out")
    bad.write_bytes(photograph(0))
    with pytest.raises(OutputError, match=r"The source has changed, or is another one: .*imagenet1k-train-\*.tar"):
        pack(source, tmp_path / "out")
    for path in (tmp_path / "out" / WORK_FOLDER).iterdir():
        path.unlink()
    (tmp_path / "out" / WORK_FOLDER).rmdir()
    (manifest,) = pack(source, tmp_path / "out")
    assert manifest.num_samples == 10


def test_renaming_the_class_of_the_same_images_makes_other_settings(tmp_path: Path):
    """The class is in the JSON of each sample, so it changes the bytes."""
    root = write_class_folders(tmp_path / "source", {"a": 1})
    (root / "a" / "0.jpg").rename(root / "a" / f"{WNIDS[0]}_1.JPEG")
    pack(root, tmp_path / "out")
    (root / "a").rename(root / "b")
    with pytest.raises(OutputError, match="classes_sha256"):
        pack(root, tmp_path / "out")


def test_shards_of_unknown_origin_are_not_overwritten(source: str, tmp_path: Path):
    (tmp_path / "imagenet1k-train-0000.tar").write_bytes(b"theirs")
    with pytest.raises(OutputError, match=r"already holds imagenet1k-train-0000.tar .* sharding.index"):
        pack(source, tmp_path)
    assert (tmp_path / "imagenet1k-train-0000.tar").read_bytes() == b"theirs"


def test_shards_of_a_split_with_a_longer_name_are_left_alone(source: str, tmp_path: Path):
    (tmp_path / "imagenet1k-train-extra-0000.tar").write_bytes(b"another's")
    (manifest,) = pack(source, tmp_path)
    assert manifest.num_samples == SOURCE_IMAGES
    assert json.loads((tmp_path / INFO).read_text())["splits"].keys() == {"train"}
    assert os.path.exists(tmp_path / "imagenet1k-train-extra-0000.tar")


@pytest.fixture(scope="module")
def groups_of_2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parquet")
    return synthetic.write_parquet(root / "2", large_images(24), validation_images(2), row_group_size=2)


def test_the_same_images_in_other_row_groups_are_another_plan(groups_of_2: Path, tmp_path: Path):
    groups_of_6 = synthetic.write_parquet(tmp_path / "6", large_images(24), validation_images(2), row_group_size=6)
    output = tmp_path / "out"
    assert not pack(groups_of_2, output, task_index=0, task_count=2)
    with pytest.raises(OutputError, match=r"belongs to other settings .*plan_sha256"):
        pack(groups_of_6, output, task_index=1, task_count=2)
    (manifest,) = pack(groups_of_2, output, task_index=1, task_count=2)
    assert manifest.num_samples == 24


@pytest.mark.parametrize(("number", "fault"), [(0, "comes more than once"), (None, "left out of 24 listed")])
def test_repeated_or_missing_samples_are_not_published(
    number: int | None, fault: str, groups_of_2: Path, tmp_path: Path
):
    pack(groups_of_2, tmp_path, task_index=0, task_count=2)
    parts = tmp_path / WORK_FOLDER
    part = ShardRecord.from_bytes(0, (parts / ShardRecord.file_name(0)).read_bytes())
    assert part is not None
    # A forged record of shard 1, with the samples of shard 0 or without samples.
    forged = dataclasses.replace(part, number=1, rows=part.rows if number == 0 else part.rows.slice(0, 0))
    (parts / ShardRecord.file_name(1)).write_bytes(forged.to_bytes())
    with pytest.raises(OutputError, match=f"do not hold what was listed: .*{fault}"):
        pack(groups_of_2, tmp_path, task_index=1, task_count=2)
    assert not (tmp_path / "imagenet1k-train.json").exists()
