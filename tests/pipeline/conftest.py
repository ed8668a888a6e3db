"""Fixtures that the tests of several folders share."""

from pathlib import Path

import pytest

from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.recipes.digits import prepare_digits
from tests.support.tracking_runs import config_json


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits of the demo, packed as shards."""
    shards = tmp_path_factory.mktemp("digits") / "shards"
    prepare_digits(shards)
    return shards


@pytest.fixture
def run_dir(tmp_path):
    config_json(tmp_path / "run", TrainConfig(steps=100, model=ModelConfig(name="transxnet_n")), None)
    return tmp_path / "run"
