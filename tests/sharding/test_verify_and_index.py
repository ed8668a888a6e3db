"""Every fault is named by shard and key; tars of others get a manifest without being touched."""

import dataclasses
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import webdataset

from sharding import ManifestError, load_index, load_manifest
from sharding.build import BuildOptions, build
from sharding.imagenet import NUM_IMAGES, compare_with_imagenet, is_imagenet
from sharding.index import IndexOptions, index
from sharding.manifest import ClassInfo, index_digest, write_manifest
from sharding.storage import Folder
from sharding.verify import VerifyOptions, main, verify
from tests.sharding.synthetic import WNIDS, photograph, train_images, validation_images, write_folders


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packed")
    write_folders(root / "source", train_images(), validation_images())
    build(BuildOptions(source=str(root / "source"), output=str(root / "shards"), shard_mb=1, workers=1))
    return root / "shards"


@pytest.fixture
def shards(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "shards"))


def faults_of(shards: Path, **options) -> list[str]:
    return [str(fault) for fault in verify(VerifyOptions(shards=str(shards), workers=1, **options))]


def row(shards: Path, number: int) -> dict:
    return load_index(str(shards), load_manifest(str(shards), "train")).slice(number, 1).to_pylist()[0]


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def test_sound_shards_have_no_fault(shards: Path):
    assert faults_of(shards) == []
    assert verify(VerifyOptions(shards=str(shards), workers=2, split="train")) == []


def test_flipped_image_byte_is_named_by_shard_and_key(shards: Path):
    entry = row(shards, 7)
    tar = shards / "imagenet1k-train-0000.tar"
    overwrite(tar, entry["offset"] + 100, b"\x55")
    found = faults_of(shards)
    assert any(text.startswith(f"{tar.name}: {entry['key']}: ") for text in found)
    assert f"{tar.name}: its SHA-256 is not the manifest's" in found
    assert len(found) == 2


def test_changed_label_is_named(shards: Path):
    entry = row(shards, 3)
    tar = shards / "imagenet1k-train-0000.tar"
    with tarfile.open(tar) as archive:
        offset = archive.getmember(f"{entry['key']}.cls").offset_data
    overwrite(tar, offset, str((entry["label"] + 1) % 10).encode())
    assert any(f"{entry['key']}: KEY.cls says label" in text for text in faults_of(shards))


def test_an_index_that_contradicts_its_manifest_is_named(shards: Path):
    """Both have their digests: whoever wrote them was wrong."""
    manifest = load_manifest(str(shards), "train")
    table = load_index(str(shards), manifest)
    keys, labels = table["key"].to_pylist(), table["label"].to_pylist()
    keys[5], labels[6] = keys[4], 10
    wrong = pa.table({"key": keys, "label": pa.array(labels, pa.int32())}).combine_chunks()
    wrong = pa.table([*wrong.columns, *table.columns[2:]], schema=table.schema).slice(0, 59)
    folder = Folder.open(str(shards))
    write_manifest(folder, dataclasses.replace(manifest, index_sha256=index_digest(wrong)), wrong)
    found = faults_of(shards, split="train")
    file = "imagenet1k-train.parquet"
    assert f"{file}: {keys[4]}: comes more than once" in found
    assert f"{file}: {keys[6]}: label 10 of 10 classes" in found
    assert f"{file}: has 59 rows for imagenet1k-train-0000.tar, the manifest 60 samples" in found


def test_a_header_that_does_not_fit_its_checksum_is_named(tmp_path: Path):
    pack_as_others_do(tmp_path, ["x-train-0.tar"])
    tar = tmp_path / "x-train-0.tar"
    with tarfile.open(tar) as archive:
        header = [member for member in archive if member.name.endswith(".jpg")][1].offset_data - 512
    overwrite(tar, header + 1, b"x")
    with pytest.raises(ManifestError, match=rf"x-train-0.tar: is damaged or no tar at byte {header:,} \(bad"):
        index(IndexOptions(shards=str(tmp_path), workers=1))


def test_truncated_missing_and_additional_shards_are_named(shards: Path):
    tar = shards / "imagenet1k-train-0000.tar"
    last = row(shards, 59)["key"]
    tar.write_bytes(tar.read_bytes()[:-6000])
    (shards / "imagenet1k-validation-0000.tar").unlink()
    (shards / "imagenet1k-train-0001.tar").write_bytes(b"")
    found = faults_of(shards)
    assert any(text.startswith(f"{tar.name}: is truncated") for text in found)
    assert f"{tar.name}: {last}: is missing from the shard" in found
    assert any("has" in text and "bytes, the manifest says" in text for text in found)
    assert "imagenet1k-validation-0000.tar: is missing" in found
    assert "imagenet1k-train-0001.tar: is not in the manifest" in found


def test_changed_manifest_and_index_are_refused(shards: Path):
    manifest = shards / "imagenet1k-train.json"
    content = manifest.read_text()
    manifest.write_text(content.replace('"samples": 60', '"samples": 59'))
    with pytest.raises(ManifestError, match="changed after it was written"):
        load_manifest(str(shards), "train")
    manifest.write_text(content)
    shutil.copy(shards / "imagenet1k-validation.parquet", shards / "imagenet1k-train.parquet")
    with pytest.raises(ManifestError, match=r"is not the index that imagenet1k-train.json was written with"):
        load_index(str(shards), load_manifest(str(shards), "train"))


def test_stale_info_is_named(shards: Path):
    info = json.loads((shards / "_info.json").read_text())
    info["splits"]["train"]["shard_lengths"] = [61]
    (shards / "_info.json").write_text(json.dumps(info))
    assert faults_of(shards) == ["_info.json: does not describe imagenet1k-train as its manifest does"]


def test_command_ends_with_1_on_faults(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("sys.argv", ["verify", "--shards", str(shards), "--workers", "1"])
    assert main() == 0
    tar = shards / "imagenet1k-train-0000.tar"
    tar.write_bytes(tar.read_bytes()[: row(shards, 20)["offset"]])
    assert main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(": ")[2] for line in lines].count("is missing from the shard") == 6
    assert f"{tar.name}: and 35 more samples of this shard: is missing from the shard" in lines
    assert lines[-1].startswith("42 faults")
    tar.unlink()
    assert main() == 1
    assert "imagenet1k-train-0000.tar: is missing" in capsys.readouterr().out


def test_missing_things_are_named(tmp_path: Path):
    with pytest.raises(ManifestError, match="there is no such folder"):
        load_manifest(str(tmp_path / "none"), "train")
    (tmp_path / "imagenet1k-train-0000.tar").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"python -m sharding.index --shards"):
        load_manifest(str(tmp_path), "train")
    with pytest.raises(ManifestError, match=r"python -m sharding.index --shards"):
        verify(VerifyOptions(shards=str(tmp_path)))
    with pytest.raises(ManifestError, match=r"no manifest \*-test.json"):
        load_manifest(str(tmp_path), "test")


def pack_as_others_do(folder: Path, names: list[str]) -> None:
    """The public convention, written by the public writer, labels in KEY.json alone for every second sample."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        with webdataset.TarWriter(str(folder / name)) as writer:
            for position, image in enumerate(train_images()[number :: len(names)]):
                sample = {"__key__": image.stem, "jpg": image.data, "json": {"label": image.label}}
                writer.write(sample if position % 2 else sample | {"cls": image.label})


def test_index_describes_tars_of_others_without_touching_them(tmp_path: Path):
    pack_as_others_do(tmp_path, [f"imagenet1k-train-{number:04d}.tar" for number in range(3)])
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


def test_index_of_our_own_shards_is_the_same(shards: Path):
    ours = load_index(str(shards), load_manifest(str(shards), "train"))
    for path in shards.glob("imagenet1k-*.[jp]*"):
        path.unlink()
    manifests = index(IndexOptions(shards=str(shards), workers=1))
    assert [manifest.split for manifest in manifests] == ["train", "validation"]
    assert load_index(str(shards), manifests[0]).equals(ours)
    assert manifests[0].classes == manifests[1].classes


def test_index_refuses_gaps_and_damage(tmp_path: Path):
    names = [f"imagenet1k-train-{number:04d}.tar" for number in range(3)]
    pack_as_others_do(tmp_path, names)
    (tmp_path / names[1]).rename(tmp_path / "aside")
    with pytest.raises(ManifestError, match="the numbers 1 are missing"):
        index(IndexOptions(shards=str(tmp_path), workers=1))
    content = (tmp_path / "aside").read_bytes()
    (tmp_path / names[1]).write_bytes(content[:9000])
    with pytest.raises(ManifestError, match=f"{names[1]}: is truncated"):
        index(IndexOptions(shards=str(tmp_path), workers=1, on_bad="skip"))
    assert not (tmp_path / "imagenet1k-train.json").exists()


def test_index_leaves_out_bad_samples_when_asked(tmp_path: Path):
    with webdataset.TarWriter(str(tmp_path / "x-train-0.tar")) as writer:
        writer.write({"__key__": "good", "jpg": photograph(0), "cls": 0})
        writer.write({"__key__": "bad", "jpg": photograph(1)[:-100], "cls": 1})
    with pytest.raises(ManifestError, match=r"x-train-0.tar: bad: truncated or damaged JPEG"):
        index(IndexOptions(shards=str(tmp_path), workers=1))
    (manifest,) = index(IndexOptions(shards=str(tmp_path), workers=1, on_bad="skip"))
    assert (manifest.num_samples, [entry.key for entry in manifest.odd]) == (1, ["bad"])
    assert faults_of(tmp_path) == []


def test_audit_counts_the_classes_of_imagenet():
    classes = [ClassInfo(f"n{number:08d}", "") for number in range(1000)]
    assert is_imagenet(classes, "validation")
    assert not is_imagenet(classes[:999], "validation")
    labels = np.arange(50_000, dtype=np.int32) % 1000
    assert compare_with_imagenet("validation", labels, classes) == []
    labels[0] = 1
    assert compare_with_imagenet("validation", labels, classes) == [
        "class n00000000 has 49 images; in ImageNet a class has 50",
        "class n00000001 has 51 images; in ImageNet a class has 50",
    ]
    short = compare_with_imagenet("train", np.arange(1_281_000, dtype=np.int32) % 1000, classes)
    assert short == [f"1,281,000 images; ImageNet's train split has {NUM_IMAGES['train']:,}"]


def test_names_in_archives_are_only_text(tmp_path: Path):
    with tarfile.open(tmp_path / "x-train-0.tar", "w") as archive:
        for name, data in (("../../climb.jpg", photograph(0)), ("../../climb.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    index(IndexOptions(shards=str(tmp_path), workers=1))
    assert faults_of(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "_info.json",
        "x-train-0.tar",
        "x-train.json",
        "x-train.parquet",
    ]
    assert not list(tmp_path.parent.parent.glob("climb*"))
