"""Average precision: equal to pycocotools, to recorded figures, and for any order of the images."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coding
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.tasks.detection.average_precision import average_precision, encode_mask
from tests.transxnet.dense.reference import REFERENCE, needs_reference, rules

CATEGORIES = (0, 1, 2, 3)
IMAGES = {7: (60, 80), 3: (50, 90), 12: (64, 64), 5: (70, 70)}
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def scene(seed: int) -> tuple[list[dict], list[dict]]:
    """Ellipses as truths, some of them crowds, and as detections some moved ones; category 3 and image 5 have none."""
    draw = np.random.RandomState(seed)
    truths, detections = [], []
    for image in (7, 3, 12):
        height, width = IMAGES[image]
        for _ in range(6):
            side = draw.uniform(8, 40, 2)
            corner = draw.uniform(0, [width - side[0], height - side[1]])
            category = int(draw.randint(3))
            for moved in range(draw.randint(1, 4)):
                place = corner + moved * draw.normal(0, 3, 2)
                y, x = np.ogrid[:height, :width]
                half, centre = side / 2, place + side / 2
                mask = ((x - centre[0]) / half[0]) ** 2 + ((y - centre[1]) / half[1]) ** 2 <= 1
                entry = {
                    "image_id": image,
                    "category_id": category,
                    "bbox": [*place.tolist(), *side.tolist()],
                    "segmentation": encode_mask(mask),
                }
                if moved:
                    detections.append({**entry, "score": float(draw.uniform())})
                else:
                    area = float(mask.sum())
                    truths.append({**entry, "area": area, "iscrowd": int(draw.uniform() < 0.15)})
    return truths, detections


def oracle(images: dict, categories: tuple, truths: list[dict], detections: list[dict], kind: str) -> list[float]:
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": key, "height": size[0], "width": size[1]} for key, size in images.items()],
        "categories": [{"id": category, "name": str(category)} for category in categories],
        "annotations": [{**item, "id": number} for number, item in enumerate(truths, start=1)],
    }
    truth.createIndex()
    dropped = "bbox" if kind == "segm" else "segmentation"
    results = [{key: value for key, value in item.items() if key != dropped} for item in detections]
    evaluation = COCOeval(truth, truth.loadRes(results), kind)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return [math.nan if value == -1 else value for value in evaluation.stats]


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1])
def test_all_figures_equal_pycocotools_in_any_order_of_the_images(seed: int, kind):
    truths, detections = scene(seed)
    found = average_precision(IMAGES, CATEGORIES, truths, detections, kind)
    assert 0.05 < found.scores["AP"] < 0.95
    expected = oracle(IMAGES, CATEGORIES, truths, detections, kind)
    assert [found.scores[name] for name in NAMES] == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assert math.isnan(found.per_category[3])
    rest = [value for value in found.per_category.values() if not math.isnan(value)]
    assert np.mean(rest) == pytest.approx(found.scores["AP"])

    # As three ranks would gather them.
    dealt = [[item for item in detections if item["image_id"] == image] for image in (12, 7, 3)]
    again = average_precision(
        dict(sorted(IMAGES.items())), CATEGORIES, truths[::-1], [*dealt[0], *dealt[1], *dealt[2]], kind
    )
    assert again == found or str(again) == str(found)


def test_nothing_found_is_zero_where_there_is_something_to_find():
    truths, _ = scene(0)
    none = average_precision(IMAGES, CATEGORIES, truths, [], "bbox")
    assert (none.scores["AP"], none.scores["AR100"], none.per_category[0]) == (0.0, 0.0, 0.0)
    assert math.isnan(none.scores["APl"])
    assert math.isnan(none.per_category[3])
    assert math.isnan(average_precision(IMAGES, CATEGORIES, [], [], "bbox").scores["AP"])


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of pycocotools, with NumPy 2
def test_masks_are_encoded_as_coco_does():
    mask = np.random.RandomState(0).uniform(size=(37, 23)) < 0.3
    encoded = encode_mask(mask)
    assert json.loads(json.dumps(encoded)) == encoded
    assert np.array_equal(coding.decode(encoded), mask)


@needs_reference
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_figures_are_the_recorded_ones(kind):
    recorded = json.loads((Path(REFERENCE) / "dense_metrics.json").read_text())["coco"]
    truths, detections = rules().coco_case(recorded["seed"])
    for item in (*truths, *detections):
        mask = item.pop("mask")
        item["segmentation"] = encode_mask(mask)
        item["area"] = float(mask.sum())
        item.setdefault("iscrowd", 0)
    images = dict.fromkeys(range(1, 7), (240, 320))
    found = average_precision(images, (1, 3, 17, 44, 90), truths, detections, kind)
    expected = recorded[kind]
    assert {str(key): value for key, value in found.per_category.items()} == pytest.approx(expected.pop("per_category"))
    assert found.scores == pytest.approx(expected, abs=1e-8)
