"""Small shards that the tests of the loader share."""

import pytest

from tests.pipeline.data.reading import SHARDS
from tests.support.small_shards import pack


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    pack(folder, SHARDS)
    pack(folder, (13, 8), split="validation")
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"
