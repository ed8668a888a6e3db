"""`--hold-out`: training and validation images from one folder of classes."""

import json

import pytest

from sharding import OutputError, ShardingError, load_index, load_manifest
from sharding.build import BuildOptions, build
from sharding.sources import list_divided, list_source
from tests.sharding.builds import run_build
from tests.sharding.synthetic import write_class_folders

COUNTS = {"birds": 1, "cats": 2, "dogs": 10, "fish": 7}


def test_each_class_gives_its_share_and_no_image_is_in_both_parts(tmp_path):
    source = write_class_folders(tmp_path / "photos", COUNTS)
    train, validation = list_divided(str(source), 0.2, None)
    names = [train.names.to_pylist(), validation.names.to_pylist()]
    assert {name: [sum(name in path for path in part) for part in names] for name in COUNTS} == {
        "birds": [1, 0],
        "cats": [1, 1],
        "dogs": [8, 2],
        "fish": [6, 1],
    }
    assert not {*names[0]} & {*names[1]}
    assert train.classes == validation.classes
    assert "1 classes have one image each, which is not held out" in train.notes
    [again] = list_divided(str(source), 0.2, "validation")
    assert again.names == validation.names
    [other] = list_divided(str(source), 0.2, "validation", seed=1)
    assert other.names != validation.names


def test_one_command_packs_both_parts_and_another_share_is_refused(tmp_path):
    source = write_class_folders(tmp_path / "photos", COUNTS)
    flags = ["--source", str(source), "--output", str(tmp_path / "shards"), "--workers", "1", "--hold-out"]
    done = run_build(*flags, "0.2")
    assert done.returncode == 0, done.stderr
    counts = {}
    for split in ("train", "validation"):
        manifest = load_manifest(str(tmp_path / "shards"), split)
        assert [entry.wnid for entry in manifest.classes] == sorted(COUNTS)
        counts[split] = load_index(str(tmp_path / "shards"), manifest).num_rows
        assert json.loads((tmp_path / f"shards/{manifest.stem}.json").read_text())["settings"]["hold_out"] == 0.2
    assert counts == {"train": 16, "validation": 4}
    again = run_build(*flags, "0.4")
    assert again.returncode == 1
    assert "Give the same --hold-out and --seed, or pack both into another --output" in again.stderr


def pack_part(source, output, split, **division):
    return build(BuildOptions(source=str(source), output=str(output), split=split, workers=1, **division))


def test_another_share_is_not_taken_for_another_source(tmp_path):
    source, output = write_class_folders(tmp_path / "photos", COUNTS), tmp_path / "shards"
    pack_part(source, output, "train", hold_out=0.2)
    for other in ({"hold_out": 0.4}, {"hold_out": 0.2, "seed": 1}, {}):
        with pytest.raises(OutputError, match=r"Give the same settings, or another --output or --name\."):
            pack_part(source, output, "train", **other)


def test_the_other_part_is_packed_with_the_same_values_or_not_beside_the_first(tmp_path):
    source, output = write_class_folders(tmp_path / "photos", COUNTS), tmp_path / "shards"
    pack_part(source, output, "train", hold_out=0.2)
    for other in ({"hold_out": 0.5}, {"hold_out": 0.2, "seed": 1}, {}):
        with pytest.raises(OutputError, match=r"the same images may be in both\. Give the same --hold-out and"):
            pack_part(source, output, "validation", **other)
    assert not list(output.glob("*validation*"))
    pack_part(source, output, "test")
    [validation] = pack_part(source, output, "validation", hold_out=0.2)
    assert validation.num_samples == 4


def test_what_cannot_be_divided_is_refused(tmp_path):
    whole = write_class_folders(tmp_path / "photos", {"birds": 1, "cats": 1})
    with pytest.raises(ShardingError, match=r"no class of .* has two images"):
        list_divided(str(whole), 0.2, None)
    with pytest.raises(ShardingError, match="there is no --split test"):
        list_divided(str(whole), 0.2, "test")
    with pytest.raises(ShardingError, match="between 0 and 1"):
        build(BuildOptions(source=str(whole), hold_out=20))
    for split in ("train", "val"):
        write_class_folders(tmp_path / "both" / split, {"birds": 2, "cats": 2})
    with pytest.raises(ShardingError, match="has a validation split of its own"):
        list_divided(str(tmp_path / "both"), 0.2, None)
    maps = write_class_folders(tmp_path / "maps", {"images": 2, "masks": 2})
    for refused in (lambda: list_divided(str(maps), 0.2, None), lambda: list_source(str(maps), "train")):
        with pytest.raises(ShardingError, match="holds its images in images and masks, which hardly are classes"):
            refused()


def test_a_test_split_beside_the_divided_images_is_named(tmp_path):
    for split in ("train", "test"):
        write_class_folders(tmp_path / split, {"birds": 2, "cats": 2})
    train, _ = list_divided(str(tmp_path), 0.2, None)
    assert train.notes == ("the split test is left out: --split test without --hold-out packs it",)
