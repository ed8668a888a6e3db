"""Labels against the splits that are already published in the output."""

from pathlib import Path

import pytest

from sharding import OutputError, load_index
from sharding.build import BuildOptions, build
from tests.sharding.builds import pack
from tests.sharding.synthetic import photograph, write_class_folders


def test_a_split_takes_the_labels_of_the_published_split_of_its_name(tmp_path: Path):
    train = tmp_path / "train"
    for name in ("a", "b", "c"):
        (train / name).mkdir(parents=True)
        (train / name / "1.jpg").write_bytes(photograph(ord(name)))
    (tmp_path / "val" / "c").mkdir(parents=True)
    (tmp_path / "val" / "c" / "2.jpg").write_bytes(photograph(7))
    output = tmp_path / "out"
    pack(str(tmp_path), output)
    (manifest,) = pack(str(tmp_path), output, split="validation")
    assert load_index(str(output), manifest)["label"].to_pylist() == [2]
    (tmp_path / "val" / "d").mkdir()
    (tmp_path / "val" / "d" / "3.jpg").write_bytes(photograph(8))
    with pytest.raises(OutputError, match=r"1 others \(d\)"):
        pack(str(tmp_path), output, split="validation")


def test_a_split_with_other_labels_published_during_the_build_stops_it(tmp_path: Path):
    train = write_class_folders(tmp_path / "one", {"a": 2, "b": 2, "c": 2})
    validation = write_class_folders(tmp_path / "two", {"b": 1, "c": 1})
    output = tmp_path / "out"

    def meanwhile(line: str) -> None:
        if line.startswith("train:"):  # the build has compared train with the published splits
            pack(validation, output, split="validation")

    options = BuildOptions(source=str(train), output=str(output), split="train", shard_mb=1, workers=1)
    with pytest.raises(OutputError, match=r"validation was published .* meanwhile with 2 classes.* one source"):
        build(options, log=meanwhile)
    assert not (output / "imagenet1k-train.json").exists()
