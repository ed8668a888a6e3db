"""The model card."""

import dataclasses
from pathlib import Path

import pytest

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
        top1=1 / 3,
        top5=0.999,
        validation_samples=360,
        train_digest="a" * 64,
        validation_digest="b" * 64,
        git_commit="c0ffee",
    )
    save_model_card(card, tmp_path)
    assert load_model_card(tmp_path) == card
    with pytest.raises(ModelCardError, match="9 class names for num_classes 10"):
        dataclasses.replace(card, classes=card.classes[1:])
