"""The parent run in MLflow of a sweep's runs."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.run.status import find_runs
from pipeline.run.sweep import prepare_folder
from pipeline.status.sync import sync_run
from pipeline.tracking.client import open_client, resolve_tracking_uri
from pipeline.tracking.shipper import EVERYTHING, Shipper
from tests.support.tracking_runs import append_records, config_json


@pytest.mark.slow
def test_runs_of_a_sweep_share_one_parent_that_ends_with_the_last(tmp_path: Path):
    uri, folder = resolve_tracking_uri(tmp_path), tmp_path / "runs" / "sweep"
    names = ["seed=1", "seed=2"]
    folder.mkdir(parents=True)
    prepare_folder(folder, ["train.seed=1,2,3"], [*names, "seed=3"])
    for name in [*names, "seed=3"]:
        content = config_json(folder / name, TrainConfig(model=ModelConfig(name="transxnet_n")), uri)
        (folder / name / "config.json").write_text(json.dumps(content | {"sweep": str(folder)}))
        if name in names:
            append_records(folder / name, range(1, 4))
    everything = sorted(run.name for run in find_runs(tmp_path / "runs"))
    assert everything == sorted(run.name for run in find_runs(folder)) == [*names, "seed=3"]
    client = open_client(uri)

    def begin(name: str) -> Shipper:
        shipper = Shipper(folder / name)
        shipper.begin({})
        shipper.ship(EVERYTHING)
        return shipper

    client.create_experiment("transxnet", artifact_location=(tmp_path / "artifacts").as_uri())
    with ThreadPoolExecutor(2) as pool:
        shippers = list(pool.map(begin, names))
    experiment = client.get_experiment_by_name("transxnet")
    assert experiment is not None
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"sweep", *names}
    parent = runs["sweep"].info.run_id
    assert {runs[name].data.tags["mlflow.parentRunId"] for name in names} == {parent}
    assert runs["sweep"].data.tags["sweep"] == "train.seed=1,2,3"
    for shipper in shippers:
        shipper.end("FINISHED")
        shipper.send_status()
        assert client.get_run(parent).info.status == "RUNNING"
    # The third run is cancelled before it begins.
    assert "status KILLED" in sync_run(folder / "seed=3")
    assert client.get_run(parent).info.status == "KILLED"
