"""Manifest and index for tars that other software packed, without changing the tars."""

import shutil
from pathlib import Path

import pytest
import webdataset

from sharding import ManifestError, load_index, load_manifest
from sharding.index import IndexOptions, index
from tests.sharding.builds import faults_of
from tests.sharding.synthetic import (
    WNIDS,
    photograph,
    tar_bytes,
    tar_member,
    train_images,
    write_tar_of_two,
    write_webdataset,
)


def test_tars_of_other_software_get_an_index_and_stay_unchanged(tmp_path: Path):
    write_webdataset(tmp_path, [f"imagenet1k-train-{number:04d}.tar" for number in range(3)])
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")}
    (manifest,) = index(IndexOptions(shards=str(tmp_path), workers=2))
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.tar")} == before
    assert [entry.wnid for entry in manifest.classes] == WNIDS
    assert [shard.samples for shard in manifest.shards] == [20, 20, 20]
    table = load_index(str(tmp_path), load_manifest(str(tmp_path), "train"))
    expected = {image.stem: image for image in train_images()}
    for entry in table.to_pylist():
        data = before[manifest.shards[entry["shard"]].name][entry["offset"] :][: entry["size"]]
        assert (data, entry["label"]) == (expected[entry["key"]].data, expected[entry["key"]].label)
    assert faults_of(tmp_path) == []


def test_the_index_of_shards_of_this_package_is_the_same(shards: Path):
    ours = load_index(str(shards), load_manifest(str(shards), "train"))
    for path in shards.glob("imagenet1k-*.[jp]*"):
        path.unlink()
    manifests = index(IndexOptions(shards=str(shards), workers=1))
    assert [manifest.split for manifest in manifests] == ["train", "validation"]
    assert load_index(str(shards), manifests[0]).equals(ours)
    assert manifests[0].classes == manifests[1].classes


def test_gaps_and_truncated_tars_are_refused(tmp_path: Path):
    names = [f"imagenet1k-train-{number:04d}.tar" for number in range(3)]
    write_webdataset(tmp_path, names)
    (tmp_path / names[1]).rename(tmp_path / "moved")
    with pytest.raises(ManifestError, match="the numbers 1 are missing"):
        index(IndexOptions(shards=str(tmp_path), workers=1))
    content = (tmp_path / "moved").read_bytes()
    (tmp_path / names[1]).write_bytes(content[:9000])
    with pytest.raises(ManifestError, match=f"{names[1]}: is truncated"):
        index(IndexOptions(shards=str(tmp_path), workers=1, on_bad="skip"))
    assert not (tmp_path / "imagenet1k-train.json").exists()


def test_unreadable_samples_are_left_out_when_asked(tmp_path: Path):
    with webdataset.TarWriter(str(tmp_path / "x-train-0.tar")) as writer:
        writer.write({"__key__": "good", "jpg": photograph(0), "cls": 0})
        writer.write({"__key__": "bad", "jpg": photograph(1)[:-100], "cls": 1})
    with pytest.raises(ManifestError, match=r"x-train-0.tar: bad: truncated or damaged JPEG"):
        index(IndexOptions(shards=str(tmp_path), workers=1))
    (manifest,) = index(IndexOptions(shards=str(tmp_path), workers=1, on_bad="skip"))
    assert (manifest.num_samples, [entry.key for entry in manifest.odd]) == (1, ["bad"])
    assert faults_of(tmp_path) == []


def test_two_tars_with_the_same_number_are_refused(tmp_path: Path):
    for name in ("x-train-0.tar", "x-train-0000.tar"):
        shutil.copy(write_tar_of_two(tmp_path / "moved"), tmp_path / name)
    with pytest.raises(ManifestError, match=r"x-train-0.tar and x-train-0000.tar have the same number"):
        index(IndexOptions(shards=str(tmp_path), workers=1))


def test_a_key_repeated_by_the_next_sample_is_a_fault(tmp_path: Path):
    """WebDataset's writer allows such neighbours, and its reader merges them into one sample."""
    members = []
    for key, label in (("k", 0), ("k", 1), ("m", 1)):
        members += [(f"{key}.jpg", photograph(label)), (f"{key}.cls", str(label).encode())]
    (tmp_path / "x-train-0.tar").write_bytes(tar_bytes(members))
    for on_bad in ("stop", "skip"):
        with pytest.raises(ManifestError, match=r"x-train-0.tar: the key 'k' comes more than once"):
            index(IndexOptions(shards=str(tmp_path), workers=1, on_bad=on_bad))


def test_members_that_are_no_samples_are_ignored(tmp_path: Path):
    sample = tar_member("k.jpg", photograph(0)) + tar_member("k.cls", b"0")
    odd = (
        tar_member("._k.jpg", b"of a Mac")
        + tar_member("README", b"read me")
        + tar_member("k.json", b'{"class": ["a"]}')
    )
    content = tar_member("._k.jpg", b"of a Mac") + sample + odd
    (tmp_path / "x-train-0.tar").write_bytes(content + bytes(1024))
    (manifest,) = index(IndexOptions(shards=str(tmp_path), workers=1))
    assert (manifest.num_samples, manifest.classes[0].wnid) == (1, "0")
