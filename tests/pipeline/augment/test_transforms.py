"""The fast augmentation against timm's: each operation on the same image, and the distribution of all together."""

import io
import math
import random

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image
from timm.data import auto_augment
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.data.transforms_factory import create_transform

from pipeline.augment.decode import DecodeError, EncodedImage
from pipeline.augment.operations import Resampling
from pipeline.augment.randaugment import CHOICES, INCREASING_CHOICES, PolicyError, RandAugment
from pipeline.augment.timm_transforms import FaithfulAugment
from pipeline.augment.transforms import TrainAugment, draw_crop, evaluation_pixels, resize
from pipeline.config.schema import AugmentConfig
from pipeline.order import draws
from tests.support import SAMPLE
from tests.support.small_shards import photograph

FILL = (124, 116, 104)


@pytest.fixture(scope="module")
def photographs() -> list[bytes]:
    """Real photographs where they are at hand, generated ones elsewhere, as soft as a lens makes them."""
    files = sorted(SAMPLE.glob("*/*.JPEG"))[::25]
    return [file.read_bytes() for file in files] or [soft(photograph(n, 300 + 20 * n, 340)) for n in range(8)]


def soft(encoded: bytes) -> bytes:
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    return cv2.imencode(".jpg", cv2.GaussianBlur(pixels, (3, 3), 0.8))[1].tobytes()


@pytest.fixture(scope="module")
def squares(photographs) -> list[np.ndarray]:
    return [evaluation_pixels(data, 224, 0.9) for data in photographs]


def distance(a: object, b: object) -> float:
    return float(np.abs(np.asarray(a).astype(np.int64) - np.asarray(b)).mean())


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


def test_a_crop_is_the_whole_image_cut(photographs):
    for data in photographs:
        image, whole = EncodedImage(data), simplejpeg.decode_jpeg(data, fastupsample=True, strict=False)
        assert (image.height, image.width) == whole.shape[:2]
        for bottom in (17, 32, 100, image.height // 2, image.height - 20, image.height):
            crop = image.crop(bottom - 16, 5, 16, 40, 224)
            assert (crop == whole[bottom - 16 : bottom, 5:45]).all()


def test_a_large_crop_is_decoded_at_half_its_size():
    data = photograph(3, 901, 1203)
    half = EncodedImage(data).crop(100, 200, 800, 1000, 336)
    assert half.shape == (400, 500, 3)
    whole = EncodedImage(data).crop(100, 200, 800, 1000, 1000)
    assert whole.shape == (800, 1000, 3)
    assert distance(half, cv2.resize(whole, (500, 400), interpolation=cv2.INTER_AREA)) < 4


def encoded(mode: str, format: str) -> bytes:
    sink = io.BytesIO()
    image = Image.fromarray(simplejpeg.decode_jpeg(photograph(1, 60, 50))).convert(mode)
    image.save(sink, format, **({"progressive": True, "subsampling": 0} if mode == "RGB" and format == "JPEG" else {}))
    return sink.getvalue()


@pytest.mark.parametrize(("mode", "format"), [("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "JPEG"), ("P", "PNG")])
def test_odd_images_become_rgb(mode, format):
    data = encoded(mode, format)
    image = EncodedImage(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert distance(image.pixels(), expected) < 1
    assert distance(image.crop(3, 4, 20, 30, 224), expected[3:23, 4:34]) < 1


@pytest.mark.parametrize("data", [b"", b"no image", photograph(0)[:20]])
def test_what_is_no_image_is_an_error(data):
    with pytest.raises(DecodeError, match="cannot be decoded"):
        EncodedImage(data).pixels()


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


def quantiles_apart(a: np.ndarray, b: np.ndarray) -> float:
    levels = np.linspace(0.05, 0.95, 19)
    return float(np.abs(np.quantile(a, levels) - np.quantile(b, levels)).max())


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


def test_strengths_are_distributed_as_timms():
    policy = RandAugment.parse("rand-m9-mstd0.5-inc1")
    uniforms = draws.uniforms(draws.key(2, np.arange(20000)), 2).tolist()
    ours = np.array([policy.strength(*pair) for pair in uniforms])
    random.seed(0)
    theirs = np.array([max(0.0, min(random.gauss(9, 0.5), 10)) for _ in range(20000)])
    assert quantiles_apart(ours, theirs) < 0.03


def test_layers_are_chosen_and_applied_as_often_as_timms():
    policy = RandAugment.parse("rand-m9-mstd0.5-inc1")
    counts = dict.fromkeys((choice.name for choice in policy.choices), 0)
    applied = 0

    def counting(choice):
        def operation(pixels, argument, resampling):
            counts[choice.name] += 1
            return pixels

        return type(choice)(choice.name, operation, choice.argument)

    counted = type(policy)(**{**vars(policy), "choices": tuple(counting(choice) for choice in policy.choices)})
    images = 6000
    for uniforms in draws.uniforms(draws.key(5, np.arange(images)), policy.draws).tolist():
        before = sum(counts.values())
        counted(np.zeros((2, 2, 3), np.uint8), uniforms, FILL, None)
        applied += sum(counts.values()) > before
    assert applied / images == pytest.approx(0.75, abs=0.02)
    for count in counts.values():
        assert count / images == pytest.approx(1 / 15, abs=0.012)
    theirs = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {})
    assert sorted(counts) == sorted(op.name for op in theirs.ops)
    assert (theirs.num_layers, theirs.ops[0].prob, theirs.choice_weights) == (2, policy.probability, None)


@pytest.mark.parametrize(
    "description", ["rand", "rand-m9", "rand-m7-n3-mstd101-mmax12", "rand-p0.7-inc0", "rand-m9-mstdinf"]
)
def test_descriptions_are_read_as_timm_reads_them(description):
    ours, theirs = RandAugment.parse(description), auto_augment.rand_augment_transform(description, {})
    op = theirs.ops[0]
    bound = op.magnitude_max or 10
    assert (ours.magnitude, ours.layers, ours.probability, ours.bound) == (
        op.magnitude,
        theirs.num_layers,
        op.prob,
        bound,
    )
    assert ours.deviation == op.magnitude_std or math.isinf(ours.deviation)


@pytest.mark.parametrize("description", ["augmix-m3", "rand-m9-tweights", "rand-m", "rand-m9-", "m9"])
def test_a_description_that_is_not_understood_is_an_error(description):
    with pytest.raises(PolicyError, match=r"is not understood: it is rand-mM-mstdS-incI"):
        RandAugment.parse(description)


def test_fast_and_faithful_images_are_distributed_alike(photographs):
    """Moments of the pixels over many draws, of one image, and the size of what changes between neighbours."""
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


def test_faithful_mode_leaves_the_generators_of_the_process_alone(photographs):
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
