"""How far the top-1 of a registered model may lie from the recorded one."""

import dataclasses

import pytest

from pipeline.register.verify import tolerance
from pipeline.weights.card import ModelCard


def test_the_tolerance_detects_a_wrong_preprocessing():
    card = ModelCard(
        name="m", num_classes=1, image_size=32, classes=(("n", "n"),), preprocessing=None, step=1, epoch=1, top1=0.8
    )
    assert tolerance(dataclasses.replace(card, validation_samples=64), 64) == pytest.approx(1 / 64)
    assert 0.1 < tolerance(dataclasses.replace(card, validation_samples=50_000), 64) < 0.25
