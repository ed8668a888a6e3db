"""What several files of tests share."""

from pathlib import Path

import pytest

from pipeline.recipes.digits import prepare_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as shards."""
    shards = tmp_path_factory.mktemp("digits") / "shards"
    prepare_digits(shards)
    return shards
