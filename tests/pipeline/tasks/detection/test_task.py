"""What a detection refuses, and what it measures of the entries of all ranks."""

from dataclasses import replace

import pytest
import torch

from pipeline.common.errors import InputError
from pipeline.config.schema import AugmentConfig, ConfigError, MixConfig, ModelConfig
from pipeline.tasks import find_task
from pipeline.tasks.detection.found import found_share
from tests.support.detections import training

TASK = find_task("detection")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"model": ModelConfig(name="transxnet_t")},
            r"transxnet_t detects no objects: take retinanet_t or mask_rcnn_t",
        ),
        ({"mix": MixConfig(mixup=0.8)}, r"boxes cannot be mixed: --train\.mix\.mixup 0"),
        ({"cuda_graphs": True}, r"cuda_graphs needs batches of one size"),
    ],
)
def test_what_contradicts_a_detection_is_refused(tmp_path, change, reason):
    config = training(tmp_path, tmp_path)
    TASK.check(config)
    with pytest.raises(ConfigError, match=reason):
        TASK.check(replace(config, **change))


def entry(row: int, found: list[dict]) -> dict:
    """An image with one object of class 1, and what was found in it."""
    crowd = {"category": 0, "bbox": [0, 0, 30, 30], "area": 900.0, "iscrowd": 1}
    own = {"category": 1, "bbox": [4.0, 4.0, 10.0, 10.0], "area": 100.0, "iscrowd": 0}
    return {"row": row, "size": (40, 50), "objects": [crowd, own], "detections": found, "has_masks": False}


def test_scores_do_not_depend_on_the_order_of_ranks():
    hit = {"category_id": 1, "score": 0.9, "bbox": [4.0, 4.0, 10.0, 10.0]}
    near = {"category_id": 1, "score": 0.8, "bbox": [4.0, 4.0, 10.0, 7.0]}
    entries = [entry(0, [hit]), entry(1, [near]), entry(2, [])]

    def scores(order: list[int]) -> dict[str, float]:
        evaluator = TASK.evaluator(AugmentConfig(), 2, torch.device("cpu"))
        return evaluator.scores([entries[k] for k in order])

    assert scores([0, 1, 2]) == scores([2, 0, 1]) == scores([1, 2, 0])
    assert scores([0, 1, 2])["box_found"] == pytest.approx(2 / 3)
    assert 0.6 < scores([0, 1, 2])["box_ap50"] < 0.7
    assert scores([0, 1, 2])["box_ap"] < scores([0, 1, 2])["box_ap50"]
    assert "mask_ap" not in scores([0, 1, 2])
    assert set(TASK.scores.record(scores([0, 1, 2]))) == {
        "eval_box_ap",
        "eval_box_ap50",
        "eval_box_ap75",
        "eval_box_found",
    }


def test_a_split_with_crowds_alone_is_refused():
    evaluator = TASK.evaluator(AugmentConfig(), 2, torch.device("cpu"))
    crowded = entry(0, [])
    crowded["objects"] = crowded["objects"][:1]
    with pytest.raises(InputError, match="the validation split has no object"):
        evaluator.scores([crowded])


def test_an_object_is_found_by_a_box_of_its_class_that_overlaps_half():
    truths = [("cat", [0, 0, 10, 10]), ("dog", [20, 0, 30, 10])]
    assert found_share([("cat", [0, 0, 10, 6]), ("cat", [20, 0, 30, 10])], truths) == 0.5
    assert found_share([], truths) == 0.0
    assert found_share([], []) == 1.0
