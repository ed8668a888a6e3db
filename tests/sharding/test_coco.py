"""COCO's annotation files: labels, objects, and every fault that such files have."""

import json

import pytest

from sharding.coco import read_coco, target_member
from sharding.errors import SourceError

SQUARE = [[10, 10, 20, 10, 20, 20, 10, 20]]


def content(**changes) -> bytes:
    whole = {
        "images": [
            {"id": 9, "file_name": "b.jpg", "width": 40, "height": 30},
            {"id": 4, "file_name": "a.jpg", "width": 64, "height": 48},
        ],
        "categories": [{"id": 44, "name": "bottle"}, {"id": 3, "name": "car"}],
        "annotations": [annotation()],
    }
    return json.dumps({**whole, **changes}).encode()


def annotation(**changes) -> dict:
    whole = {"id": 1, "image_id": 4, "category_id": 44, "bbox": [10, 10, 10.5, 10], "area": 100, "iscrowd": 0}
    return {**whole, "segmentation": SQUARE, **changes}


def test_labels_are_the_positions_of_the_sorted_category_ids():
    coco = read_coco(content(), "x.json")
    assert [(info.wnid, info.name) for info in coco.classes] == [("3", "car"), ("44", "bottle")]
    assert [image.number for image in coco.images] == [4, 9]
    assert not coco.faults
    assert [image.number for image in coco.annotated] == [4]
    expected = {"category": 1, "bbox": [10.0, 10.0, 10.5, 10.0], "area": 100.0, "iscrowd": 0, "segmentation": SQUARE}
    assert json.loads(target_member(coco, coco.images[0])) == {
        "image_id": 4,
        "width": 64,
        "height": 48,
        "objects": [expected],
    }
    assert json.loads(target_member(coco, coco.images[1]))["objects"] == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"image_id": 5}, "annotation 1 belongs to image 5, which the file does not name"),
        ({"category_id": 7}, "annotation 1 of image 4 has the category 7, which has no name"),
        ({"bbox": [1, 2, 3]}, "annotation 1 of image 4 has the box [1, 2, 3]; it needs four numbers"),
        (
            {"bbox": [1, 2, float("nan"), 3]},
            "annotation 1 of image 4 has the box [1, 2, nan, 3]; it needs four numbers",
        ),
        ({"bbox": [1, 2, 0, 3]}, "annotation 1 of image 4 has an empty box [1, 2, 0, 3]"),
        ({"bbox": [64, 2, 5, 3]}, "annotation 1 of image 4 has the box [64, 2, 5, 3] outside its 64 x 48 pixels"),
        (
            {"bbox": [0, 0, 1e9, 3]},
            "annotation 1 of image 4 has the box [0, 0, 1000000000.0, 3] far beyond its 64 x 48 pixels",
        ),
        (
            {"segmentation": [[1, 1, 1e9, 2, 3, 3]]},
            "annotation 1 of image 4 has a polygon far beyond its 64 x 48 pixels",
        ),
        ({"iscrowd": 2}, "annotation 1 of image 4 has iscrowd 2; it is 0 or 1"),
        ({"segmentation": [[1, 1, 2, 2]]}, "annotation 1 of image 4 has a polygon with 2 points; it needs three"),
        ({"segmentation": [[1, 1, 2, 2, 3]]}, "annotation 1 of image 4 has a polygon that is no list of x, y"),
        (
            {"segmentation": {"size": [64, 48], "counts": "abc"}},
            "annotation 1 of image 4 has a mask of [64, 48], the image has [48, 64]",
        ),
        (
            {"segmentation": {"size": [48, 64], "counts": [3, 4]}},
            "annotation 1 of image 4 has a mask whose runs add up to 7 pixels",
        ),
    ],
)
def test_a_fault_of_an_annotation_is_named_and_the_others_stay(changes: dict, fault: str):
    coco = read_coco(content(annotations=[annotation(**changes), annotation(id=2)]), "x.json")
    assert coco.faults == (f"x.json: {fault}",)
    assert [len(found) for found in coco.objects.values()] == [1]


def test_the_second_of_two_equal_ids_is_a_fault_and_boxes_that_reach_out_are_none():
    coco = read_coco(
        content(annotations=[annotation(), annotation(), annotation(id=2, bbox=[-3, 40, 9, 99])]), "x.json"
    )
    assert coco.faults == ("x.json: annotation 1 occurs twice",)
    assert len(coco.objects[4]) == 2


@pytest.mark.parametrize(
    ("images", "fault"),
    [
        (((4, "a.jpg"), (4, "b.jpg")), "images 4 (a.jpg) and 4 (b.jpg) have the same id"),
        (((4, "a.jpg"), (5, "a.jpg")), "images 4 (a.jpg) and 5 (a.jpg) have the same file"),
    ],
)
def test_images_that_cannot_be_told_apart_are_left_out_with_their_annotations(images, fault: str):
    named = [{"id": n, "file_name": name, "width": 64, "height": 48} for n, name in (*images, (9, "c.jpg"))]
    coco = read_coco(content(images=named, annotations=[annotation(), annotation(id=2, image_id=9)]), "x.json")
    assert coco.faults == (f"x.json: {fault}",)
    assert [image.number for image in coco.images] == [9]
    assert list(coco.objects) == [9]


def test_images_with_crowds_alone_are_not_annotated():
    coco = read_coco(content(annotations=[annotation(iscrowd=1, segmentation={})]), "x.json")
    assert coco.annotated == ()
    assert "segmentation" not in coco.objects[4][0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[]", "x.json is no annotation file in COCO's format"),
        (b"{", "x.json is no annotation file in COCO's format"),
        (content(categories=[]), "x.json has 0 categories with 0 different ids"),
        (content(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "2 categories with 1 different ids"),
        (content(images=[{"id": 1, "file_name": "a.jpg", "width": 0, "height": 9}]), "image 1 has 0 x 9 pixels"),
        (content(images=[{"id": "1", "file_name": "a.jpg", "width": 9, "height": 9}]), "'1' is no integer"),
    ],
)
def test_files_that_contradict_themselves_are_refused(text: bytes, message: str):
    with pytest.raises(SourceError, match=message):
        read_coco(text, "x.json")
