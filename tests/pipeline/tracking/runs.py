"""Run directories that the tests of tracking share, and what MLflow holds of them."""

from pathlib import Path

from pipeline.config.schema import DataConfig, ModelConfig, TrainConfig
from pipeline.tracking.client import open_client
from tests.support.tracking_runs import config_json


def new_run(folder: Path, uri: str | None, name: str = "run", shards: str = "missing") -> tuple[Path, dict]:
    config = TrainConfig(model=ModelConfig(name="transxnet_n"), data=DataConfig(shards=shards))
    return folder / name, config_json(folder / name, config, uri)


def history(uri: str, run_id: str, metric: str = "train/loss") -> list[int]:
    return [entry.step for entry in open_client(uri).get_metric_history(run_id, metric)]
