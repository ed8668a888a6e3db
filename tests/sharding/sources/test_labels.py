"""All splits of a source have the same labels."""

from pathlib import Path

import pytest

from sharding import SourceError, load_index, load_manifest
from tests.sharding.builds import pack
from tests.sharding.synthetic import write_class_folders


def labels_of(output: Path, split: str) -> dict[str, int]:
    table = load_index(str(output), load_manifest(str(output), split))
    return dict(zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True))


def test_splits_have_the_same_labels_before_either_is_published(tmp_path: Path):
    root = write_class_folders(tmp_path / "source", {"train/a": 2, "train/b": 2, "train/c": 2, "val/b": 2, "val/c": 2})
    for form in ("tasks", "validation first"):
        output = tmp_path / form
        if form == "tasks":  # the first task packs its share of both splits while train is not published
            assert not pack(root, output, split=None, task_index=1, task_count=2)
            assert len(pack(root, output, split=None, task_index=0, task_count=2)) == 2
        else:
            pack(root, output, split="validation")
            pack(root, output, split="train")
        assert labels_of(output, "validation") == {"b_0": 1, "b_1": 1, "c_0": 2, "c_1": 2}
        assert load_manifest(str(output), "train").classes == load_manifest(str(output), "validation").classes
    write_class_folders(root / "val", {"d": 1})
    with pytest.raises(SourceError, match=r"validation split has 1 classes that the train split does not have \(d\)"):
        pack(root, tmp_path / "out", split=None)
    assert not (tmp_path / "out").exists()
