"""COCO's zips and folders, and exported sets, become the same samples with their objects beside them."""

import json
import tarfile

import pytest

from sharding import load_index
from sharding.build import BuildOptions, build
from sharding.errors import ShardingError
from sharding.sources.hold_out import list_divided
from sharding.verify import VerifyOptions, verify
from tests.support.objects import pack_objects, write_coco_json, write_coco_zips


def pack(source, output, **options):
    return build(BuildOptions(source=str(source), output=str(output), name="small", workers=1, **options))


def members(folder, split):
    with tarfile.open(folder / f"small-{split}-0000.tar") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_zips_and_files_give_the_same_samples(tmp_path):
    for name, source in (("zips", write_coco_zips(tmp_path)), ("files", tmp_path / "source")):
        train, validation = pack(source, tmp_path / name)
        assert (train.task, train.num_samples, validation.num_samples) == ("detection", 13, 5)
        assert [(c.wnid, c.name) for c in train.classes] == [("3", "car"), ("7", "dog"), ("44", "bottle")]
    found = members(tmp_path / "zips", "train")
    assert found == members(tmp_path / "files", "train")
    target = json.loads(found["007.json"])
    assert (target["image_id"], len(target["objects"]), target["objects"][2]["iscrowd"]) == (7, 3, 1)
    assert isinstance(target["objects"][1]["segmentation"], dict)
    row = next(r for r in load_index(str(tmp_path / "zips"), train).to_pylist() if r["key"] == "007")
    with open(tmp_path / "zips/small-train-0000.tar", "rb") as tar:
        tar.seek(row["target_offset"])
        assert tar.read(row["target_size"]) == found["007.json"]
    assert not verify(VerifyOptions(shards=str(tmp_path / "zips"), workers=1))


def test_only_annotated_images_are_packed_and_the_manifest_says_so(tmp_path):
    train, validation = pack_objects(tmp_path, only_annotated=True)
    assert (train.num_samples, validation.num_samples) == (9, 4)
    assert train.settings["only_annotated"] is True


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["annotations"][0].update(category_id=99), "has the category 99"),
        (lambda c: c["images"][2].update(file_name="gone.jpg"), r"gone.jpg \(image 2\) is not in images/train"),
        (lambda c: c["annotations"][0].update(segmentation=[[1, 1, 2, 2]]), "a polygon with 2 points"),
    ],
)
def test_a_wrong_annotation_stops_the_build_or_is_left_out(tmp_path, change, reason):
    source = write_coco_json(tmp_path / "objects")
    content = json.loads((source / "annotations/train.json").read_text())
    change(content)
    (source / "annotations/train.json").write_text(json.dumps(content))
    with pytest.raises(ShardingError, match=reason):
        pack(source, tmp_path / "shards", split="train")
    [train] = pack(source, tmp_path / "shards", split="train", on_bad="skip")
    assert train.settings["annotations_left_out"] >= 1


def test_an_image_of_another_size_than_its_annotation_says_is_refused(tmp_path):
    source = write_coco_json(tmp_path / "objects")
    content = json.loads((source / "annotations/train.json").read_text())
    content["images"][0]["width"] += 1
    (source / "annotations/train.json").write_text(json.dumps(content))
    with pytest.raises(ShardingError, match=r"000\.jpg: the image has .* pixels, its annotation says"):
        pack(source, tmp_path / "shards", split="train")
    [train] = pack(source, tmp_path / "shards", split="train", on_bad="skip")
    assert [entry.key for entry in train.odd] == ["000"]
    assert train.num_samples == 12


def test_images_that_cannot_be_told_apart_are_one_fault_of_a_source_that_is_divided(tmp_path):
    source = write_coco_json(tmp_path / "objects", {"train": 13})
    content = json.loads((source / "annotations/train.json").read_text())
    content["images"][1]["id"] = content["images"][0]["id"]
    content["annotations"] = [found for found in content["annotations"] if found["image_id"] > 1]
    (source / "annotations/train.json").write_text(json.dumps(content))
    train, validation = list_divided(str(source), 0.3, None)
    assert [len(train.faults), len(validation.faults)] == [1, 0]
    assert "have the same id" in train.faults[0]
    # Their files are in the annotation file, and so is each other file.
    assert train.notes == validation.notes == ()
    [alone] = list_divided(str(source), 0.3, "validation")
    assert alone.faults == train.faults
