"""No password reaches a log, a tag, a parameter or an artifact."""

import json

from pipeline.config.schema import DataConfig, TrainConfig
from pipeline.run.report import write_report
from pipeline.tracking.client import open_client
from pipeline.tracking.shipper import Shipper
from tests.support.tracking_runs import config_json, new_store


def test_no_password_of_a_uri_reaches_a_run(tmp_path):
    uri = new_store(tmp_path)
    shards = "https://me:pa55@host/shards?sas_token=pa55"
    run_dir = tmp_path / "run"
    config = config_json(run_dir, TrainConfig(data=DataConfig(shards=shards)), uri)
    config["command"] = ["launch", "--train.data.shards", shards, "--slurm", "comment=token=pa55"]
    (run_dir / "config.json").write_text(json.dumps(config))
    (run_dir / "submitit").mkdir()
    (run_dir / "submitit/7_report_0.json").write_text('{"hosts": {"n1": 2}, "NCCL_TOKEN": "pa55"}')
    (run_dir / "submitit/kernels_report_1.json").write_text('{"left_to_pytorch": []}')
    shipper = Shipper(run_dir)
    shipper.begin({"attempt": "1"})
    shipper.ship(0)
    write_report(run_dir)
    shipper.send_report()
    run = open_client(uri).get_run(shipper.state.run_id)
    assert run.data.params["data.shards"].startswith("https://me:***@host/shards")
    assert "pa55" not in str(run.to_dictionary())
    files = [path for path in (tmp_path / "runs/mlartifacts").rglob("*") if path.is_file()]
    reports = {"7_report_0.json", "kernels_report_1.json", "report.md"}
    assert {"config.json", "environment.json"} | reports <= {path.name for path in files}
    assert not [path for path in files if b"pa55" in path.read_bytes()]
