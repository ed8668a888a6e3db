"""The scores of a segmentation, against scikit-learn and against a reading by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score, recall_score

from pipeline.common.errors import InputError
from pipeline.tasks.segmentation.evaluation import class_scores, count_pixels, total_scores

CLASSES = 9


def test_scores_equal_scikit_learns():
    random = np.random.default_rng(0)
    truth = random.integers(0, CLASSES, 4000)
    predicted = np.where(random.random(4000) < 0.4, random.integers(0, CLASSES, 4000), truth)
    ignored = random.random(4000) < 0.1
    labels = np.where(ignored, 255, truth).astype(np.uint8)
    confusion = count_pixels(torch.from_numpy(predicted), torch.from_numpy(labels), CLASSES)
    iou, accuracy = class_scores(confusion)
    kept = truth[~ignored], predicted[~ignored]
    assert iou.tolist() == pytest.approx(jaccard_score(*kept, average=None).tolist(), abs=1e-12)
    assert accuracy.tolist() == pytest.approx(recall_score(*kept, average=None).tolist(), abs=1e-12)
    assert total_scores(confusion) == pytest.approx(
        {"miou": iou.mean().item(), "aacc": accuracy_score(*kept), "macc": accuracy.mean().item()}
    )


def test_a_class_that_does_not_occur_is_left_out_of_the_means():
    # Class 0 is right twice, class 1 is taken once for class 2, which no pixel has; class 3 is nowhere.
    confusion = count_pixels(torch.tensor([0, 0, 2, 1]), torch.tensor([0, 0, 1, 1], dtype=torch.uint8), 4)
    iou, accuracy = class_scores(confusion)
    assert iou.tolist()[:3] == [1.0, 0.5, 0.0]
    assert math.isnan(iou[3])
    assert accuracy.tolist()[:2] == [1.0, 0.5]
    assert total_scores(confusion) == {"miou": 0.5, "aacc": 0.75, "macc": 0.75}
    with pytest.raises(InputError, match="nothing was evaluated"):
        total_scores(torch.zeros(4, 4, dtype=torch.int64))


def test_sums_over_parts_give_the_same_scores():
    random = np.random.default_rng(1)
    predicted, truth = (torch.from_numpy(random.integers(0, CLASSES, 1000)) for _ in range(2))
    whole = count_pixels(predicted, truth, CLASSES)
    parts = sum(count_pixels(p, t, CLASSES) for p, t in zip(predicted.split(7), truth.split(7), strict=True))
    assert (whole == parts).all()
