"""The same output again: by other builds at the same time, and once it is finished."""

import errno
import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import sharding.writer
from sharding import OutputError, load_index, load_manifest
from sharding.build import BuildOptions, build
from sharding.images import PackedImage
from sharding.storage import Folder
from sharding.verify import VerifyOptions, verify
from tests.sharding.packing import contents, pack
from tests.sharding.synthetic import NAMES, WNIDS, photograph, synset_mapping, train_images

PARTS = ".imagenet1k-train.parts"
INFO = "_info.json"


@pytest.fixture
def within(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Has something happen once, while the third image is packed."""

    def at_the_third_image(happening: Callable[[], None]) -> None:
        original, calls = sharding.writer.pack_image, []

        def pack_image(*arguments) -> PackedImage:
            calls.append(arguments)
            if len(calls) == 3:
                happening()
            return original(*arguments)

        monkeypatch.setattr(sharding.writer, "pack_image", pack_image)

    return at_the_third_image


def test_another_number_of_tasks_leaves_alone_what_is_being_written(
    within: Callable, source: str, reference: dict[str, str], tmp_path: Path
):
    (tmp_path / PARTS).mkdir()
    killed = tmp_path / PARTS / f".imagenet1k-train-0000.tar.{'0' * 32}.tmp"  # as a killed build leaves it
    killed.write_bytes(b"half")
    seen = []

    def other() -> None:
        writing = {path.name for path in (tmp_path / PARTS).glob("*.tar.*.tmp")}
        assert not pack(source, tmp_path, task_index=0, task_count=4)
        seen.append(writing & {path.name for path in (tmp_path / PARTS).glob("*.tar.*.tmp")})

    within(other)
    assert not pack(source, tmp_path, task_index=0, task_count=3)
    assert [len(names) for names in seen] == [1]
    assert not killed.exists()
    for index in (1, 2):
        pack(source, tmp_path, task_index=index, task_count=3)
    assert contents(tmp_path) == reference


def test_what_another_build_publishes_meanwhile_is_done(
    within: Callable, source: str, reference: dict[str, str], tmp_path: Path
):
    within(lambda: pack(source, tmp_path, task_index=0, task_count=1) and None)
    (manifest,) = pack(source, tmp_path, task_index=0, task_count=2)
    assert manifest.num_samples == 70
    assert contents(tmp_path) == reference


def test_records_go_once_the_lock_is_released(
    source: str, reference: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    remove_folder, held = Folder.remove_folder, []

    def on_nfs(self: Folder, name: str) -> None:
        """An open file that is removed stays there under another name, and so does its folder."""
        for lock in Path(self.join(name)).glob("*.lock"):
            with open(lock) as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    held.append(lock)
                    raise OSError(errno.ENOTEMPTY, "Directory not empty", name) from None
        remove_folder(self, name)

    monkeypatch.setattr(Folder, "remove_folder", on_nfs)
    pack(source, tmp_path)
    assert not held
    assert contents(tmp_path) == reference
    Folder.open(str(tmp_path)).remove_folder(INFO)  # no folder: what cannot be removed stays
    assert contents(tmp_path) == reference


def spoil_info(output: Path) -> None:
    (output / INFO).write_text("{}")


def lose_info(output: Path) -> None:
    (output / INFO).unlink()


def damage_index(output: Path) -> None:
    index = output / "imagenet1k-train.parquet"
    index.write_bytes(index.read_bytes()[:-100])


@pytest.mark.parametrize("spoil", [spoil_info, lose_info, damage_index])
def test_a_finished_build_mends_what_is_beside_the_shards(
    spoil: Callable[[Path], None], source: str, reference: dict[str, str], tmp_path: Path
):
    pack(source, tmp_path)
    spoil(tmp_path)
    pack(source, tmp_path)
    assert contents(tmp_path) == reference


def test_a_shard_is_written_again_by_its_task_and_the_others_wait(
    source: str, reference: dict[str, str], tmp_path: Path
):
    pack(source, tmp_path)
    (tmp_path / "imagenet1k-train-0000.tar").unlink()
    assert not pack(source, tmp_path, task_index=1, task_count=2)
    assert pack(source, tmp_path, task_index=0, task_count=2)
    assert contents(tmp_path) == reference


def test_a_shard_that_goes_while_others_are_packed_is_missed(source: str, reference: dict[str, str], tmp_path: Path):
    pack(source, tmp_path, task_index=0, task_count=2)
    (tmp_path / "imagenet1k-train-0000.tar").unlink()
    with pytest.raises(OutputError, match=r"imagenet1k-train-0000.tar is missing or has changed since it was packed"):
        pack(source, tmp_path, task_index=1, task_count=2)
    assert not (tmp_path / "imagenet1k-train.json").exists()
    pack(source, tmp_path)
    assert contents(tmp_path) == reference


def nameless(root: Path) -> Path:
    for image in train_images(1):
        (root / "train" / image.wnid).mkdir(parents=True)
        (root / "train" / image.wnid / f"{image.stem}.JPEG").write_bytes(image.data)
    return root


def test_names_given_afterwards_are_taken_and_said(tmp_path: Path):
    source, output, lines = nameless(tmp_path / "source"), tmp_path / "out", []
    (before,) = pack(source, output)
    index = load_index(str(output), before)
    mapping = tmp_path / "mapping.txt"
    mapping.write_text(synset_mapping())
    options = {"source": str(source), "output": str(output), "split": "train", "shard_mb": 1, "workers": 1}
    (after,) = build(BuildOptions(**options, classes=str(mapping)), log=lines.append)
    assert [entry.name for entry in after.classes] == [NAMES[wnid] for wnid in WNIDS]
    assert load_manifest(str(output), "train").digest == after.digest != before.digest
    assert load_index(str(output), after).equals(index)
    assert any(before.digest in line and "cannot resume" in line for line in lines)
    assert verify(VerifyOptions(shards=str(output), workers=1)) == []
    (kept,) = pack(source, output)
    assert kept.digest == after.digest


def test_a_replaced_image_is_another_source(tmp_path: Path):
    source = nameless(tmp_path / "source")
    bad = next((source / "train").glob("*/*.JPEG"))
    bad.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 unreadable image:\n.*\n.*another --output"):
        pack(source, tmp_path / "out")
    bad.write_bytes(photograph(0))
    with pytest.raises(OutputError, match=r"The source has changed, or is another one: .*imagenet1k-train-\*.tar"):
        pack(source, tmp_path / "out")
    for path in (tmp_path / "out" / PARTS).iterdir():
        path.unlink()
    (tmp_path / "out" / PARTS).rmdir()
    (manifest,) = pack(source, tmp_path / "out")
    assert manifest.num_samples == 10


def test_whole_is_what_was_packed_not_what_was_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sharding.imagenet.NUM_CLASSES", 10)
    monkeypatch.setattr("sharding.imagenet.NUM_IMAGES", {"train": 10})
    monkeypatch.setattr("sharding.imagenet.PER_CLASS", {"train": (1, 1)})
    source = nameless(tmp_path / "source")
    (whole,) = pack(source, tmp_path / "whole")
    assert whole.settings["whole_imagenet"] is True
    assert verify(VerifyOptions(shards=str(tmp_path / "whole"), workers=1)) == []
    monkeypatch.setattr("sharding.imagenet.PER_CLASS", {"train": (1, 2)})
    monkeypatch.setattr("sharding.imagenet.NUM_IMAGES", {"train": 11})
    faults = verify(VerifyOptions(shards=str(tmp_path / "whole"), workers=1))
    assert [fault.what for fault in faults] == ["10 images; ImageNet's train split has 11"]

    monkeypatch.setattr("sharding.imagenet.NUM_IMAGES", {"train": 10})
    next((source / "train").glob("*/*.JPEG")).write_bytes(b"no image")
    (part,) = pack(source, tmp_path / "part", on_bad="skip")
    assert part.settings["whole_imagenet"] is False
    (again,) = pack(source, tmp_path / "part", on_bad="skip")
    assert again.digest == part.digest


def test_the_prefix_of_another_data_set_is_not_this_one(source: str, tmp_path: Path):
    (tmp_path / "imagenet1k-train-extra-0000.tar").write_bytes(b"another's")
    (manifest,) = pack(source, tmp_path)
    assert manifest.num_samples == 70
    assert json.loads((tmp_path / INFO).read_text())["splits"].keys() == {"train"}
    assert os.path.exists(tmp_path / "imagenet1k-train-extra-0000.tar")
