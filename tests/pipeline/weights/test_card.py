"""The model card."""

import dataclasses
import json
from pathlib import Path

import pytest

from pipeline.tasks import Metric
from pipeline.weights.card import ModelCard, ModelCardError, Preprocessing, load_model_card, save_model_card


def test_a_saved_card_is_loaded_unchanged(tmp_path: Path):
    card = ModelCard(
        name="transxnet_n",
        num_classes=10,
        image_size=32,
        classes=tuple((f"n{number:08d}", f"digit {number}") for number in range(10)),
        preprocessing=Preprocessing(evaluation_crop=0.9, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        step=20,
        epoch=1.3,
        scores={"top1": 1 / 3, "top5": 0.999},
        validation_samples=360,
        train_digest="a" * 64,
        validation_digest="b" * 64,
        git_commit="c0ffee",
    )
    save_model_card(card, tmp_path)
    assert load_model_card(tmp_path) == card
    with pytest.raises(ModelCardError, match="9 class names for num_classes 10"):
        dataclasses.replace(card, classes=card.classes[1:])


def test_a_card_from_before_tasks_had_names_is_one_of_a_classification(tmp_path: Path):
    fields = {
        "name": "transxnet_n",
        "num_classes": 1,
        "image_size": 32,
        "classes": [["n1", "one"]],
        "step": 20,
        "epoch": 1,
    }
    preprocessing = {"evaluation_crop": 0.9, "mean": [0.1] * 3, "std": [0.4] * 3, "interpolation": "bicubic"}
    old = fields | {"preprocessing": preprocessing, "top1": 0.75, "top5": 0.9, "validation_samples": 8}
    (tmp_path / "model.json").write_text(json.dumps(old))
    card = load_model_card(tmp_path)
    assert card.task == "classification"
    assert card.metric == Metric(name="top1", value=0.75)
    assert card.to_dict().items() >= {"metric": "top1", "metric_value": 0.75, "top1": 0.75, "top5": 0.9}.items()
