"""YOLO's text files and Pascal VOC's XML files give the samples that COCO's annotation file gives."""

import json
import re
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from sharding.build import BuildOptions, build
from sharding.errors import ShardingError
from sharding.sources.detect import list_split
from tests.support.objects import CATEGORIES, write_coco_json, write_voc_xml, write_yolo


def pack(source: Path, output: Path, **options):
    return build(BuildOptions(source=str(source), output=str(output), name="small", workers=1, **options))


def samples(folder: Path, split: str) -> dict[str, dict]:
    """Size of the image, and category and box of each object, by the name of KEY.json."""
    found = {}
    with tarfile.open(folder / f"small-{split}-0000.tar") as tar:
        for member in tar:
            if member.name.endswith(".json"):
                file = tar.extractfile(member)
                assert file is not None
                content = json.loads(file.read())
                objects = [[o["category"], *(round(side, 6) for side in o["bbox"])] for o in content["objects"]]
                found[member.name] = {"size": (content["width"], content["height"]), "objects": objects}
    return found


@pytest.mark.parametrize(("form", "write"), [("yolo", write_yolo), ("voc-xml", write_voc_xml)])
def test_the_samples_are_those_of_the_annotation_file(tmp_path, form, write):
    pack(write_coco_json(tmp_path / "coco"), tmp_path / "expected")
    manifests = pack(write(tmp_path / form), tmp_path / "shards")
    for manifest in manifests:
        assert manifest.task == "detection"
        assert [entry.name for entry in manifest.classes] == list(CATEGORIES.values())
        assert samples(tmp_path / "shards", manifest.split) == samples(tmp_path / "expected", manifest.split)


def test_outlines_become_polygons_and_difficult_objects_crowds(tmp_path):
    pack(write_yolo(tmp_path / "yolo"), tmp_path / "a")
    pack(write_voc_xml(tmp_path / "voc"), tmp_path / "b")
    for folder, key in (("a", "segmentation"), ("b", "iscrowd")):
        with tarfile.open(tmp_path / folder / "small-train-0000.tar") as tar:
            file = tar.extractfile("007.json")
            assert file is not None
            objects = json.loads(file.read())["objects"]
        values = [entry.get(key) for entry in objects]
        if folder == "a":
            x, y, w, h = objects[0]["bbox"]
            assert values[0] == [pytest.approx([x, y, x + w, y, x + w, y + h, x, y + h])]
            assert objects[0]["area"] == pytest.approx(w * h)
        else:
            assert values == [0, 0, 1]


def other_line(line: str):
    def change(source: Path) -> None:
        path = source / "labels/train/001.txt"
        path.write_text(path.read_text() + line + "\n")

    return change


def other_page(old: str, new: str):
    def change(source: Path) -> None:
        path = source / "annotations/train/001.xml"
        path.write_text(re.sub(old, new, path.read_text(), count=1))

    return change


def turned(source: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = source / "images/train/001.jpg"
    Image.open(path).save(path, exif=exif)


@pytest.mark.parametrize(
    ("write", "change", "reason"),
    [
        (write_yolo, other_line("0 1.6 0.5 0.1 0.1"), r"train/001\.txt, line 2: of image 1 has the box .* outside"),
        (write_yolo, other_line("0 nan 0.5 0.1 0.1"), "line 2: of image 1 has the box .*; it needs four numbers"),
        (write_yolo, other_line("7 0.5 0.5 0.1 0.1"), "line 2: of image 1 has the category 7, which has no name"),
        (write_yolo, other_line("0 0.5 0.5 0 0.1"), "line 2: of image 1 has an empty box"),
        (write_yolo, other_line("0 0.5 0.5 0.1 0.1\n0 0.5 0.5 0.1 0.1"), "line 3: occurs twice"),
        (write_yolo, other_line("0 0.5 0.5 0.1"), "line 2: has 3 numbers after the class"),
        (write_yolo, other_line("car 0.5 0.5 0.1 0.1"), "line 2: is no class with numbers: car"),
        (write_yolo, lambda s: (s / "images/train/001.jpg").unlink(), r"001\.txt has no image in images/train"),
        (write_yolo, turned, r"images/train/001\.jpg is turned by EXIF"),
        (write_voc_xml, other_page(r"<xmin>\d+", "<xmin>999"), r"train/001\.xml: object 1 of image 1 has an empty box"),
        (write_voc_xml, other_page(r"<xmin>\d+", "<xmin>nan"), "object 1 of image 1 has the box .*; it needs four"),
        (write_voc_xml, other_page(r"<xmin>\d+", "<xmin>"), "object 1 has the corners"),
        (write_voc_xml, other_page("<name>[a-z]+", "<name>cat"), "of image 1 has the category cat, which has no name"),
        (write_voc_xml, other_page("(<object>.*</object>)", r"\1\1"), "object 2 occurs twice"),
        (write_voc_xml, other_page("</annotation>", ""), r"001\.xml is no XML"),
        (write_voc_xml, lambda s: (s / "images/train/001.jpg").unlink(), r"001\.jpg \(image 1\) is not in images"),
    ],
)  # fmt: skip
def test_a_wrong_annotation_is_named_and_the_others_stay(tmp_path, write, change, reason):
    source = write(tmp_path / "source")
    whole = list_split(str(source), "train")
    assert not whole.faults
    change(source)
    listing = list_split(str(source), "train")
    [fault] = listing.faults
    assert re.search(reason, fault), fault
    assert len(listing) >= len(whole) - 1


def test_voc_itself_is_read_by_its_lists(tmp_path):
    source, root = write_voc_xml(tmp_path / "source"), tmp_path / "VOCdevkit/VOC2007"
    (root / "ImageSets/Main").mkdir(parents=True)
    (source / "images/train").rename(root / "JPEGImages")
    (source / "annotations/train").rename(root / "Annotations")
    (root / "ImageSets/Main/train.txt").write_text("003\n001\n")
    (root / "ImageSets/Main/val.txt").write_text("007\n")
    train, validation = pack(tmp_path / "VOCdevkit", tmp_path / "shards")
    assert (train.num_samples, validation.num_samples) == (2, 1)
    assert [entry.name for entry in train.classes] == sorted(CATEGORIES.values())


def test_classes_without_names_are_refused(tmp_path):
    source = write_yolo(tmp_path / "source")
    (source / "data.yaml").write_text("names: {1: cat}")
    with pytest.raises(ShardingError, match=r"data\.yaml: names is no list of classes"):
        pack(source, tmp_path / "shards")
    (source / "data.yaml").unlink()
    with pytest.raises(ShardingError, match=r"names no classes: write data\.yaml"):
        pack(source, tmp_path / "shards")
