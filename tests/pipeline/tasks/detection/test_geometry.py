"""Boxes and masks of resized and flipped images: small cases by hand, pycocotools, and recorded values."""

import json

import numpy as np
import pytest
from pycocotools import mask as coding

from pipeline.tasks.detection.geometry import (
    boxes_of,
    flip_boxes,
    mask_of,
    resize_boxes,
    resize_mask,
    without_small,
)
from tests.transxnet.dense.reference import REFERENCE, needs_reference, rules


def test_boxes_are_scaled_for_each_axis_cut_and_flipped():
    boxes = boxes_of([{"bbox": [1, 2, 3, 4]}, {"bbox": [-2, 5, 30, 30]}])
    assert boxes.tolist() == [[1, 2, 4, 6], [-2, 5, 28, 35]]
    assert boxes_of([]).shape == (0, 4)
    resized = resize_boxes(boxes, (10, 20), (21, 41))
    assert resized.tolist() == [[pytest.approx(v) for v in (2.05, 4.2, 8.2, 12.6)], [0, 10.5, 41, 21]]
    assert flip_boxes(resized, 41)[1].tolist() == [0, 10.5, 41, 21]
    assert flip_boxes(resized, 41)[0].tolist() == pytest.approx([32.8, 4.2, 38.95, 12.6])
    assert resize_boxes(boxes[:0], (10, 20), (21, 41)).shape == (0, 4)


def test_boxes_of_less_than_a_pixel_or_outside_are_left_out():
    boxes = np.float32([[0, 0, 1, 1], [0, 0, 0.9, 9], [20, 0, 25, 5], [-5, -5, 0, 9], [18, 8, 30, 30]])
    assert without_small(boxes, (10, 20)).tolist() == [True, False, False, False, True]


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools, with NumPy 2
def test_polygons_and_both_forms_of_run_lengths_give_the_masks_of_pycocotools():
    polygons = [[3, 3, 20.5, 4, 12, 17], [22, 2, 28, 2, 28, 9, 22, 9]]
    expected = coding.decode(coding.merge(coding.frPyObjects(polygons, 20, 30)))
    assert 100 < expected.sum() < 400
    assert np.array_equal(mask_of(polygons, (20, 30)), expected)
    changes = np.flatnonzero(np.diff(expected.ravel(order="F"), prepend=0, append=2))
    runs = np.diff(changes, prepend=0).tolist()
    assert sum(runs) == 600
    assert np.array_equal(mask_of({"size": [20, 30], "counts": runs}, (20, 30)), expected)
    encoded = coding.encode(np.asfortranarray(expected))
    text = {"size": [20, 30], "counts": encoded["counts"].decode()}
    assert np.array_equal(mask_of(text, (20, 30)), expected)
    assert resize_mask(expected, (40, 60)).sum() == 4 * expected.sum()


@needs_reference
def test_boxes_and_masks_are_the_recorded_ones():
    recorded = json.loads((REFERENCE / "dense_transforms.json").read_text())
    for case in recorded["detection"]:
        boxes, _ = rules().boxes(case["box_seed"], 3, *case["size"])
        resized = resize_boxes(boxes.numpy(), tuple(case["size"]), tuple(case["result"]))
        assert resized == pytest.approx(np.array(case["boxes"]), abs=1e-3)
        assert flip_boxes(resized, case["result"][1]) == pytest.approx(np.array(case["flipped"]), abs=1e-3)
    case = recorded["detection_pixels"]
    boxes, _ = rules().boxes(case["box_seed"], 4, *case["size"])
    masks = rules().ellipses(boxes, *case["size"])
    size = tuple(case["mask_shape"][1:])
    resized = [resize_mask(mask, size) for mask in masks]
    assert [int(mask.sum()) for mask in resized] == case["mask_areas"]
    after = flip_boxes(resize_boxes(boxes.numpy(), tuple(case["size"]), size), size[1])
    assert after == pytest.approx(np.array(case["after"]["boxes"]), abs=1e-3)
