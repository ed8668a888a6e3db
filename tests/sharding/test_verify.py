"""Every fault is named by shard and key."""

import dataclasses
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from sharding import load_index, load_manifest
from sharding.index_table import index_digest
from sharding.manifest import write_manifest
from sharding.storage import Folder
from sharding.verify import VerifyOptions, main, verify
from tests.sharding.builds import faults_of


def row(shards: Path, number: int) -> dict:
    return load_index(str(shards), load_manifest(str(shards), "train")).slice(number, 1).to_pylist()[0]


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def test_sound_shards_have_no_fault(shards: Path):
    assert faults_of(shards) == []
    assert verify(VerifyOptions(shards=str(shards), workers=2, split="train")) == []


def test_a_flipped_image_byte_is_named_by_shard_and_key(shards: Path):
    entry = row(shards, 7)
    tar = shards / "imagenet1k-train-0000.tar"
    overwrite(tar, entry["offset"] + 100, b"\x55")
    found = faults_of(shards)
    assert any(text.startswith(f"{tar.name}: {entry['key']}: ") for text in found)
    assert f"{tar.name}: its SHA-256 is not the manifest's" in found
    assert len(found) == 2


def test_a_changed_label_is_named(shards: Path):
    entry = row(shards, 3)
    tar = shards / "imagenet1k-train-0000.tar"
    with tarfile.open(tar) as archive:
        offset = archive.getmember(f"{entry['key']}.cls").offset_data
    overwrite(tar, offset, str((entry["label"] + 1) % 10).encode())
    assert any(f"{entry['key']}: KEY.cls says label" in text for text in faults_of(shards))


def test_an_index_that_contradicts_its_manifest_is_named(shards: Path):
    """Both match their digests, so the software that wrote them was wrong."""
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


def test_an_outdated_info_file_is_named(shards: Path):
    info = json.loads((shards / "_info.json").read_text())
    info["splits"]["train"]["shard_lengths"] = [61]
    (shards / "_info.json").write_text(json.dumps(info))
    assert faults_of(shards) == ["_info.json: does not describe imagenet1k-train as its manifest does"]


def test_the_command_lists_faults_and_ends_with_exit_code_1(
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
