"""Each operation of RandAugment against timm's, on the same image."""

import random

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment

from pipeline.augment.operations import Resampling
from pipeline.augment.randaugment import CHOICES, INCREASING_CHOICES
from pipeline.augment.transforms import evaluation_pixels
from tests.pipeline.augment.compare import distance

FILL = (124, 116, 104)


@pytest.fixture(scope="module")
def squares(photographs) -> list[np.ndarray]:
    return [evaluation_pixels(data, 224, 0.9) for data in photographs]


@pytest.mark.parametrize("choice", [*INCREASING_CHOICES, *CHOICES], ids=lambda choice: choice.name)
def test_each_operation_is_timms_within_a_grey_level(choice, squares):
    geometric = choice.name.startswith(("Rotate", "Shear", "Translate"))
    level_to_argument = auto_augment.LEVEL_TO_ARG[choice.name]
    operation = auto_augment.NAME_TO_OP[choice.name]
    for magnitude in (0.0, 4.3, 9.0, 10.0):
        for sign, draw in ((1, 0.4), (-1, 0.6)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(random, "random", lambda draw=draw: draw)
                arguments = level_to_argument(magnitude, {}) if level_to_argument else ()
            ours = choice.argument(magnitude / 10, sign)
            assert arguments == () or ours == pytest.approx(arguments[0])
            for cubic in (False, True) if geometric else (False,):
                keywords = {"fillcolor": FILL, "resample": Image.Resampling.BICUBIC if cubic else 2}
                apart = [
                    distance(
                        operation(Image.fromarray(pixels), *arguments, **keywords),
                        choice.operation(pixels, ours, Resampling(cubic, FILL)),
                    )
                    for pixels in squares
                ]
                assert np.mean(apart) < 1.0, (magnitude, sign, cubic, apart)


def test_operations_do_not_change_their_input(squares):
    for choice in INCREASING_CHOICES:
        before = squares[0].copy()
        choice.operation(squares[0], choice.argument(0.9, 1), Resampling(True, FILL))
        assert (squares[0] == before).all(), choice.name


def test_equalize_and_autocontrast_of_flat_images_change_nothing():
    flat = np.full((9, 7, 3), (3, 200, 90), np.uint8)
    for choice in INCREASING_CHOICES[:2]:
        assert (choice.operation(flat, 0.0, Resampling(True, FILL)) == flat).all()
