"""Run directories that the tests of tracking share, and what MLflow holds of them."""

from pathlib import Path
from typing import Any

from pipeline.config.schema import DataConfig, ModelConfig, TrainConfig
from pipeline.tracking.client import open_client
from pipeline.tracking.shipper import Shipper
from tests.support.tracking_runs import append_event, config_json


def new_run(
    folder: Path, uri: str | None, name: str = "run", shards: str = "missing", **fields: Any
) -> tuple[Path, dict]:
    config = TrainConfig(model=ModelConfig(name="transxnet_n"), data=DataConfig(shards=shards), **fields)
    return folder / name, config_json(folder / name, config, uri)


def leave_to_next_job(run_dir: Path) -> Shipper:
    """Record an attempt that was interrupted and waits for its next job, as MLflow knows too."""
    shipper = Shipper(run_dir)
    shipper.begin({})
    shipper.ship(-1)
    shipper.end("SCHEDULED")
    shipper.send_status()
    append_event(run_dir, "start", 1, 0, step=0, world_size=1)
    append_event(run_dir, "end", 1, 1, outcome="interrupted")
    return shipper


def history(uri: str, run_id: str, metric: str = "train/loss") -> list[int]:
    return [entry.step for entry in open_client(uri).get_metric_history(run_id, metric)]
