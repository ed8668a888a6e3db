"""Build, index, training, evaluation and the served model accept the same files, whatever the files are like."""

import numpy as np
import pytest

from pipeline.augment.decode import DecodeError, EncodedImage
from pipeline.augment.timm_transforms import FaithfulAugment
from pipeline.augment.transforms import EvaluationAugment, TrainAugment
from pipeline.config.schema import AugmentConfig
from sharding import ImageError
from sharding.decoding import decode
from sharding.images import ImagePolicy, pack_image
from sharding.index import IndexOptions, index
from sharding.verify import VerifyOptions, verify
from tests.sharding.synthetic import tar_bytes
from tests.support.torture import damaged_files, jpeg, mutants, odd_files

SIDE = 70
CONFIG = AugmentConfig()
TRANSFORMS = (
    TrainAugment(CONFIG, SIDE, 0),
    FaithfulAugment(CONFIG, SIDE, 0),
    EvaluationAugment(CONFIG, SIDE),
)
ODD, DAMAGED = odd_files(), damaged_files()


def is_packed(data: bytes) -> bool:
    try:
        pack_image(data, ImagePolicy())
    except ImageError:
        return False
    return True


def assert_decoded_everywhere(data: bytes) -> None:
    """Each transform decodes it, and each reduction gives the pixels of the whole image."""
    out = np.zeros((SIDE, SIDE, 3), np.uint8)
    for transform in TRANSFORMS:
        (drawn,) = transform.draw(np.zeros(1, np.int64), np.zeros(1, np.int64))
        transform(data, drawn, out)
    whole, image = decode(data), EncodedImage(data)
    assert whole.shape == (image.height, image.width, 3)
    height, width = image.height // 8 * 8, image.width // 8 * 8
    for enough in (1000, 250, 120, 60):
        crop = image.crop(0, 0, height, width, enough).astype(float)
        factor = height // len(crop)
        means = whole[:height, :width].reshape(height // factor, factor, width // factor, factor, 3).mean(axis=(1, 3))
        assert crop.shape == means.shape
        assert np.abs(crop - means).mean() < 6


@pytest.mark.parametrize("name", ODD)
def test_an_odd_file_is_accepted_everywhere(name):
    assert is_packed(ODD[name])
    assert_decoded_everywhere(ODD[name])


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_everywhere(name):
    assert not is_packed(DAMAGED[name])
    with pytest.raises(ImageError):
        decode(DAMAGED[name])
    with pytest.raises(DecodeError):
        TRANSFORMS[2](DAMAGED[name], None, np.zeros((SIDE, SIDE, 3), np.uint8))


def compare_mutants(count: int, seed: int) -> int:
    """Check that whatever is packed is decoded, and nothing else is; return how many are packed."""
    packed = 0
    for name, data in mutants(count, seed).items():
        if is_packed(data):
            packed += 1
            try:
                for enough in (1000, 60):
                    image = EncodedImage(data)
                    image.crop(0, 0, image.height, image.width, enough)
                image.pixels()
            except DecodeError as error:
                raise AssertionError(f"{name} of seed {seed} is packed, but {error}") from error
        else:
            with pytest.raises(ImageError):
                decode(data)
    return packed


def test_files_one_byte_apart_are_judged_alike_everywhere():
    assert 50 < compare_mutants(200, 0) < 200


@pytest.mark.slow
def test_many_files_one_byte_apart_are_judged_alike_everywhere():
    for seed in range(1, 41):
        compare_mutants(200, seed)


def test_the_index_lists_what_is_odd(tmp_path):
    names = ["no end mark", "bad profile", "CMYK", "lossless", "stray byte"]
    members = [("plain.jpg", jpeg()), ("plain.cls", b"0")]
    for number, name in enumerate(names):
        members += [(f"{number}.jpg", ODD[name]), (f"{number}.cls", b"0")]
    (tmp_path / "x-train-0.tar").write_bytes(tar_bytes(members))
    lines = []
    (manifest,) = index(IndexOptions(shards=str(tmp_path), workers=1), log=lines.append)
    assert manifest.num_samples == 6
    assert {entry.key: (entry.reason, entry.action, entry.file) for entry in manifest.odd} == {
        "0": ("no end mark", "kept", "x-train-0.tar"),
        "1": ("Corrupt JPEG data: bad ICC marker", "kept", "x-train-0.tar"),
        "2": ("CMYK JPEG", "kept", "x-train-0.tar"),
        "3": ("lossless JPEG", "kept", "x-train-0.tar"),
        "4": ("Corrupt JPEG data: 1 extraneous bytes before marker 0xdb", "kept", "x-train-0.tar"),
    }
    assert "  kept: 1 (no end mark)" in lines
    assert verify(VerifyOptions(shards=str(tmp_path), workers=1)) == []
