"""No password reaches a log, a tag, a parameter or an artifact."""

import json
import subprocess
from pathlib import Path

from pipeline.common.secrets import mask_secrets
from pipeline.config.schema import DataConfig, TrainConfig
from pipeline.run import code_state as uncommitted
from pipeline.run.code_state import keep_changes, uncommitted_changes
from pipeline.run.report import write_report
from pipeline.tracking.client import open_client
from pipeline.tracking.shipper import Shipper
from tests.support.tracking_runs import config_json, new_store


def test_secrets_are_masked():
    masked = mask_secrets(
        "postgresql://me:pa55@db/x s3://KEY:pa55@bucket/x?secret_key=pa55&region=eu https://pa55@h/ token=pa55"
    )
    assert "pa55" not in masked
    assert "postgresql://me:***@db/x" in masked
    assert "region=eu" in masked
    for line in (
        'api_key = "pa55 55"',
        '{"password": "pa55"}',
        "Authorization: Bearer pa55pa55pa55",
        "export AWS_SECRET_ACCESS_KEY=pa55",
        "-----BEGIN RSA PRIVATE KEY-----\npa55\n-----END RSA PRIVATE KEY-----",
        "ghp_pa55pa55pa55pa55pa55pa55",
    ):
        assert "pa55" not in mask_secrets(line)
        assert "***" in mask_secrets(line)
    for line in ("s3://bucket/a@b http://host:5000/x", "self.token_mixer = DMixer(dim)", '{"lr": 0.1}'):
        assert mask_secrets(line) == line


def test_uncommitted_changes_leave_without_secrets(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True)

    git("init", "-q")
    for name in ("code.py", "server.pem", ".env"):
        (tmp_path / name).write_text("before\n")
    git("add", "-A")
    git("commit", "-qm", "before")
    (tmp_path / "code.py").write_text('lr = 0.5\nTOKEN = "pa55"\nuri = "http://me:pa55@host/"\n')
    (tmp_path / "server.pem").write_text("pa55")
    (tmp_path / ".env").write_text("pa55")
    patch = uncommitted_changes(tmp_path)
    assert "+lr = 0.5" in patch
    assert "pa55" not in patch
    assert "server.pem" not in patch
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    keep_changes(tmp_path, run_dir)
    assert (run_dir / "uncommitted.patch").read_text() == patch
    keep_changes(Path("/"), run_dir)
    assert not list(run_dir.iterdir())
    monkeypatch.setattr(uncommitted, "MAX_PATCH", 100)
    assert "cut after 100 characters" in uncommitted_changes(tmp_path)
    assert uncommitted_changes(Path("/")) == ""


def test_no_password_of_a_uri_reaches_a_run(tmp_path):
    uri = new_store(tmp_path)
    shards = "https://me:pa55@host/shards?sas_token=pa55"
    run_dir = tmp_path / "run"
    config = config_json(run_dir, TrainConfig(data=DataConfig(shards=shards)), uri)
    config["command"] = ["launch", "--train.data.shards", shards, "--slurm", "comment=token=pa55"]
    (run_dir / "config.json").write_text(json.dumps(config))
    (run_dir / "submitit").mkdir()
    (run_dir / "submitit/7_report_0.json").write_text('{"hosts": {"n1": 2}, "NCCL_TOKEN": "pa55"}')
    shipper = Shipper(run_dir)
    shipper.begin({"attempt": "1"})
    shipper.ship(0)
    write_report(run_dir)
    shipper.send_report()
    run = open_client(uri).get_run(shipper.state.run_id)
    assert run.data.params["data.shards"].startswith("https://me:***@host/shards")
    assert "pa55" not in str(run.to_dictionary())
    files = [path for path in (tmp_path / "runs/mlartifacts").rglob("*") if path.is_file()]
    assert {"config.json", "environment.json", "7_report_0.json", "report.md"} <= {path.name for path in files}
    assert not [path for path in files if b"pa55" in path.read_bytes()]
