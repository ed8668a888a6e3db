"""Crops, resizes and the whole augmentation against timm's."""

import io
import random

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.data.transforms_factory import create_transform

from pipeline.augment.decode import EncodedImage
from pipeline.augment.timm_transforms import FaithfulAugment
from pipeline.augment.transforms import TrainAugment, draw_crop, evaluation_pixels, resize
from pipeline.config.schema import AugmentConfig
from pipeline.order import draws
from tests.pipeline.augment.compare import distance, quantiles_apart
from tests.pipeline.augment.conftest import soft
from tests.support.small_shards import photograph


@pytest.mark.parametrize("cubic", [False, True])
@pytest.mark.parametrize("shape", [(150, 170), (224, 224), (250, 240), (290, 330), (375, 333), (210, 400), (480, 300)])
def test_resizing_is_pillows_within_a_grey_level(photographs, shape, cubic):
    method = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    apart = []
    for data in photographs:
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        crop = np.ascontiguousarray(cv2.resize(pixels, None, fx=1, fy=1)[: shape[0], : shape[1]])
        apart.append(distance(resize(crop, 224, cubic), Image.fromarray(crop).resize((224, 224), method)))
    assert np.mean(apart) < 1.0


@pytest.mark.parametrize("cubic", [False, True])
def test_crops_decoded_at_half_size_are_pillows_at_odd_offsets_too(cubic):
    method = Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR
    apart: dict[tuple[int, int], list[float]] = {(0, 0): [], (0, 1): [], (1, 0): [], (1, 1): []}
    for number in range(4):
        data = soft(photograph(number, 420, 460))
        for (down, right), distances in apart.items():
            top, left, height, width = 40 + down, 54 + right, 300, 320
            crop = EncodedImage(data).crop(top, left, height, width, 128)
            assert crop.shape == (150, 160, 3)
            whole = Image.open(io.BytesIO(data)).convert("RGB")
            expected = whole.resize((112, 112), method, box=(left, top, left + width, top + height))
            distances.append(distance(resize(crop, 112, cubic), expected))
    even, *odd = (np.mean(distances) for distances in apart.values())
    assert max(odd) < even + 0.2


def test_crops_are_distributed_as_timms():
    config, (height, width) = AugmentConfig(), (375, 500)
    keys = draws.key(0, draws.Purpose.CROP, 0, np.arange(4000))
    ours = np.array([draw_crop(u, height, width, config) for u in draws.uniforms(keys, 41).tolist()])
    random.seed(0)
    image = Image.new("RGB", (width, height))
    parameters = RandomResizedCropAndInterpolation.get_params
    theirs = np.array([parameters(image, config.crop_scale, config.crop_ratio) for _ in range(4000)])
    for column in range(4):
        assert quantiles_apart(ours[:, column], theirs[:, column]) < 0.05 * (height, width)[column % 2]
    assert quantiles_apart(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]) < 0.04 * height * width


@pytest.mark.parametrize("shape", [(30, 400), (400, 30), (1, 1), (64, 64)])
def test_crops_of_extreme_images_fit_and_fall_back_to_the_centre(shape):
    config = AugmentConfig()
    for uniforms in ([0.999] * 41, [0.0] * 41, draws.uniforms(draws.key(1), 41).tolist()):
        top, left, height, width = draw_crop(uniforms, *shape, config)
        assert 0 <= top <= shape[0] - height
        assert 0 <= left <= shape[1] - width
        assert height > 0
        assert width > 0
    assert draw_crop([0.999] * 41, 30, 400, config) == (0, 180, 30, 40)


@pytest.mark.thorough
def test_fast_and_faithful_images_are_distributed_alike(photographs):
    """Compares mean, deviation and mean gradient of the pixels over many draws for each image."""
    config, draws_of_each = AugmentConfig(horizontal_flip=0.0), 160
    results = {}
    for name, augment in (("fast", TrainAugment(config, 96, 0)), ("faithful", FaithfulAugment(config, 96, 0))):
        out, moments = np.empty((96, 96, 3), np.uint8), []
        for number, data in enumerate(photographs[:4]):
            samples = np.arange(draws_of_each) + 1000 * number
            for drawn in augment.draw(np.zeros_like(samples), samples):
                augment(data, drawn, out)
                pixels = out.astype(np.float64)
                moments.append((pixels.mean(), pixels.std(), np.abs(np.diff(pixels, axis=1)).mean()))
        results[name] = np.array(moments).reshape(-1, draws_of_each, 3)
    fast, faithful = results["fast"], results["faithful"]
    spread = np.sqrt((fast.var(axis=1) + faithful.var(axis=1)) / draws_of_each)
    assert (np.abs(fast.mean(axis=1) - faithful.mean(axis=1)) / spread).max() < 4.5


def test_faithful_images_are_timms_for_the_same_seed(photographs):
    config = AugmentConfig()
    theirs = create_transform(
        96, is_training=True, use_prefetcher=True, color_jitter=None, auto_augment=config.rand_augment, hflip=0.5,
        interpolation="random",
    )  # fmt: skip
    augment, out = FaithfulAugment(config, 96, 0), np.empty((96, 96, 3), np.uint8)
    samples = np.arange(len(photographs))
    for data, drawn in zip(photographs, augment.draw(np.zeros_like(samples), samples), strict=True):
        augment(data, drawn, out)
        random.seed(drawn), np.random.seed(drawn & 0xFFFFFFFF), torch.manual_seed(drawn >> 1)
        expected = theirs(Image.open(io.BytesIO(data)).convert("RGB"))
        assert (out == np.asarray(expected).transpose(1, 2, 0)).all()


def test_faithful_mode_does_not_change_global_random_states(photographs):
    augment = FaithfulAugment(AugmentConfig(), 64, 0)
    out = np.empty((64, 64, 3), np.uint8)
    random.seed(1), np.random.seed(1)
    expected = random.random(), np.random.random()
    random.seed(1), np.random.seed(1)
    (drawn,) = augment.draw(np.array([0]), np.array([7]))
    augment(photographs[0], drawn, out)
    assert (random.random(), np.random.random()) == expected
    again = np.empty_like(out)
    augment(photographs[0], drawn, again)
    assert (out == again).all()


def test_evaluation_pixels_are_timms(photographs):
    for size, crop in ((224, 0.9), (96, 0.95)):
        transform = create_transform(size, interpolation="bicubic", crop_pct=crop, use_prefetcher=True)
        for data in photographs:
            expected = np.asarray(transform(Image.open(io.BytesIO(data)).convert("RGB"))).transpose(1, 2, 0)
            assert distance(evaluation_pixels(data, size, crop), expected) < 0.3
