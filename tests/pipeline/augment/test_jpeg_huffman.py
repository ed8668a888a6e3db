"""Every valid Huffman table is decoded as libjpeg-turbo does, on files that a small encoder writes."""

import ctypes
import random
import shlex
import subprocess
import sysconfig
from pathlib import Path

import pytest
import simplejpeg

from pipeline.augment.decode import EncodedImage
from pipeline.augment.jpeg import region as jpeg_region
from tests.pipeline.augment.baseline_jpeg import (
    ALL_AC_SYMBOLS,
    SAMPLINGS,
    HuffmanTable,
    random_boxes,
    random_jpeg,
    random_table,
)

pytestmark = pytest.mark.skipif(
    not jpeg_region.is_built(), reason="the decoder is built when the package is installed, with a C compiler"
)
SHORT_ZEROS = HuffmanTable((1, 0, 2, 1, *[0] * 12), (0xF0, 0x01, 0xE1, 0x00))
"""A code of one bit for 16 zeros: a lookup sees up to ten of them."""


@pytest.fixture(scope="module")
def check_blocks(tmp_path_factory):
    """Compile `check_blocks.c` with the compiler that built the decoder."""
    library = tmp_path_factory.mktemp("check") / "check_blocks.so"
    compiler = shlex.split(sysconfig.get_config_var("CC") or "cc")
    flags = ["-shared", "-fPIC", "-O2", "-fwrapv", f"-I{Path(jpeg_region.__file__).parent}"]
    source = Path(__file__).with_name("check_blocks.c")
    subprocess.run([*compiler, *flags, str(source), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).check_blocks

    def check(table: HuffmanTable, rounds: int, seed: int) -> int:
        return function(bytes(table.counts), bytes(table.symbols), len(table.symbols), rounds, seed)

    return check


def assert_same_pixels(data: bytes, sampling: str, chance: random.Random, crops: int) -> None:
    """Compare crops with libjpeg-turbo's decoding of the whole image."""
    whole = simplejpeg.decode_jpeg(data, "RGB", fastupsample=True)
    boxes = random_boxes(chance, *whole.shape[:2], crops)
    image = EncodedImage(data)
    for number, (top, left, height, width) in enumerate(boxes.tolist()):
        expected = whole[top : top + height, left : left + width]
        region = jpeg_region.decode(data, top, left, height, width, plain=number % 2 == 1)
        assert (region is None) == (sampling == "4:4:0")
        assert region is None or (region == expected).all()
        assert (image.crop(top, left, height, width, enough=70) == expected).all()


@pytest.mark.parametrize("rounds", [1, 8])
def test_ten_runs_of_sixteen_zeros_in_a_lookup(check_blocks, rounds):
    assert check_blocks(SHORT_ZEROS, rounds, 0) == 0


def test_each_lookup_of_random_tables_is_decoded_as_bit_by_bit(check_blocks):
    for seed in range(100, 160):
        chance = random.Random(seed)
        symbols = chance.choice([ALL_AC_SYMBOLS, chance.sample(ALL_AC_SYMBOLS, chance.randint(2, 40)), range(256)])
        assert check_blocks(random_table(chance, symbols), 3, seed) == 0, f"seed {seed}"


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_files_with_random_tables(sampling):
    for seed in range(40):
        chance = random.Random(seed)
        data = random_jpeg(chance, sampling, chance.randint(1, 70), chance.randint(1, 70))
        assert_same_pixels(data, sampling, chance, 30)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_many_files_with_random_tables(sampling):
    for seed in range(1000, 4000):
        chance = random.Random(seed)
        data = random_jpeg(chance, sampling, chance.randint(1, 70), chance.randint(1, 70))
        assert_same_pixels(data, sampling, chance, 60)


@pytest.mark.slow
def test_each_lookup_of_many_random_tables(check_blocks):
    for seed in range(1000, 4000):
        chance = random.Random(seed)
        symbols = chance.choice([ALL_AC_SYMBOLS, chance.sample(ALL_AC_SYMBOLS, chance.randint(2, 40)), range(256)])
        assert check_blocks(random_table(chance, symbols), 8, seed) == 0, f"seed {seed}"
