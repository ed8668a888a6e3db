"""Sizes, crops and colours against values of mmsegmentation 0.30 (mmcv 1.7, OpenCV 4.11)."""

import numpy as np
import pytest

from pipeline.tasks.segmentation import distortion, geometry
from pipeline.tasks.segmentation.augment import evaluation_pixels, resize

SCALE = (2048, 512)


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """A smooth picture, uint8 [height, width, 3], RGB, by integer arithmetic."""
    random = np.random.RandomState(seed)
    slopes = random.randint(1, 7, (3, 2))
    rows, columns = np.arange(height)[:, None, None], np.arange(width)[None, :, None]
    values = (rows * slopes[:, 0] + columns * slopes[:, 1] + random.randint(0, 255, 3)) % 510
    return np.ascontiguousarray(np.where(values > 255, 510 - values, values).astype(np.uint8)[..., ::-1])


def sums(pixels: np.ndarray) -> list[int]:
    """Sum of blue, green and red."""
    return pixels.reshape(-1, 3).sum(0).tolist()[::-1]


@pytest.mark.parametrize(
    ("size", "uniform", "result"),
    [
        ((683, 512), 0.0, (342, 256)),
        ((300, 2000), 0.0, (154, 1024)),
        ((375, 500), 0.0, (256, 341)),
        ((1000, 333), 0.0, (769, 256)),
        ((683, 512), 0.25, (598, 448)),
    ],
)
def test_a_training_image_is_resized_as_upstream_does(size, uniform, result):
    assert geometry.draw_size(*size, SCALE, (0.5, 2.0), uniform) == result


@pytest.mark.parametrize(
    ("size", "result"),
    [
        ((683, 512), (704, 512)),
        ((256, 256), (512, 512)),
        ((300, 2000), (320, 2048)),
        ((427, 640), (512, 768)),
        ((1000, 333), (1568, 512)),
        ((513, 2051), (512, 2048)),
    ],
)
def test_an_evaluated_image_is_stretched_as_upstream_does(size, result):
    assert evaluation_pixels(np.zeros((*size, 3), np.uint8), SCALE, 32).shape == (*result, 3)


def test_pixels_are_resized_as_upstream_does():
    pixels, _ = resize(picture(52, 150, 201), np.zeros((150, 201), np.uint8), (83, 111))
    assert sums(pixels) == [1173424, 1176739, 1221937]


@pytest.mark.parametrize(
    ("change", "result"),
    [
        (lambda pixels: distortion.scale(pixels, 1.0, 20.5), [4423316, 4434105, 4580105]),
        (lambda pixels: distortion.scale(pixels, 0.7, 0.0), [2677168, 2686139, 2788318]),
        (lambda pixels: distortion.change_saturation(pixels, 1.3), [3444899, 3464326, 3622718]),
        (lambda pixels: distortion.change_hue(pixels, int(0.1 * 36) - 18), [3869621, 3800994, 3963891]),
        (lambda pixels: distortion.change_hue(pixels, int(0.97 * 36) - 18), [3782515, 3879269, 3947395]),
    ],
    ids=["brightness", "contrast", "saturation", "hue", "hue-up"],
)
def test_colours_are_changed_as_upstream_does(change, result):
    assert sums(change(picture(52, 150, 201))) == result


def test_the_contrast_comes_first_or_last():
    pixels = picture(52, 150, 201)
    contrast = [0.0, 0.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.0, 0.0]
    first = distortion.change_saturation(distortion.scale(pixels, 1.4, 0.0), 1.4)
    last = distortion.scale(distortion.change_saturation(pixels, 1.4), 1.4, 0.0)
    assert (distortion.distort(pixels, contrast) == first).all()
    assert (distortion.distort(pixels, [*contrast[:2], 0.4, *contrast[3:]]) == last).all()


def test_a_crop_of_one_class_is_drawn_again_up_to_ten_times():
    labels = np.full((64, 64), 7, np.uint8)
    labels[40:, 40:] = 3
    labels[:8] = 255
    uniforms = [0.0, 0.0, 0.99, 0.99, *[0.0] * (geometry.CROP_DRAWS - 4)]
    assert geometry.draw_crop(labels, 32, 0.75, uniforms, 255) == (32, 32)
    assert geometry.draw_crop(labels, 32, 1.0, uniforms, 255) == (0, 0)
    # The eleventh is taken as it is.
    same = [*[0.0] * (geometry.CROP_DRAWS - 2), 0.5, 0.25]
    assert geometry.draw_crop(labels, 32, 0.75, same, 255) == (16, 8)
