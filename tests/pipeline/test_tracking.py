"""One MLflow run for a training, whatever happens to its processes and to the server."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from pipeline.config import DataConfig, ModelConfig, TrainConfig
from pipeline.status import sync_run
from pipeline.tracking import Tracker, resolve_tracking_uri
from pipeline.tracking_client import mask_secrets, open_client
from pipeline.tracking_state import load_state
from tests.tracking_runs import append_records, config_json
from tests.tracking_servers import MlflowServer, Relay, free_port, self_signed_certificate, wait_for

REPOSITORY = Path(__file__).parents[2]
RETRIES = 1
"""What MLflow's client tries again by itself, unseen by the worker."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with MlflowServer(tmp_path_factory.mktemp("server")) as running:
        yield running


def new_run(folder: Path, uri: str | None, name: str = "run", shards: str = "missing") -> tuple[Path, dict]:
    config = TrainConfig(model=ModelConfig(name="transxnet_n"), data=DataConfig(shards=shards))
    return folder / name, config_json(folder / name, config, uri)


def history(uri: str, run_id: str, metric: str = "train/loss") -> list[int]:
    return [entry.step for entry in open_client(uri).get_metric_history(run_id, metric)]


def test_two_attempts_are_one_run_with_each_step_once(tmp_path):
    uri = resolve_tracking_uri(tmp_path)
    run_dir, config = new_run(tmp_path / "runs", uri)
    tracker = Tracker.start(run_dir, config, attempt=1, world_size=2, tags={"job_id": "7"})
    append_records(run_dir, range(1, 26))
    tracker.durable(20)
    assert tracker.close(None, timeout_s=60)
    first = tracker.run_id
    run = open_client(uri).get_run(first)
    assert run.info.status == "SCHEDULED"
    assert history(uri, first) == list(range(1, 21))

    # The second attempt goes on at the checkpoint: steps 21 to 25 are computed again, at another time.
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(lines[:20]))
    tracker = Tracker.start(run_dir, config, attempt=2, world_size=4)
    append_records(run_dir, range(21, 41), attempt=2, start=1_700_009_000.0)
    assert tracker.close("FINISHED", timeout_s=60)

    run = open_client(uri).get_run(first)
    assert tracker.run_id == first
    assert run.info.status == "FINISHED"
    assert history(uri, first) == list(range(1, 41))
    assert history(uri, first, "eval/top1") == [10, 20, 30, 40]
    assert run.data.tags["attempt"] == "2"
    assert run.data.tags["world_size"] == "4"
    assert run.data.params["optimizer.lr"] == "0.002"
    artifacts = {item.path for item in open_client(uri).list_artifacts(first, "report")}
    assert artifacts == {"report/report.md", "report/training.png"}
    assert "| 2 |" in run.data.tags["mlflow.note.content"]
    # Nothing beside the database and its artifacts was made.
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"mlflow.db", "mlartifacts", "run"}


def test_a_failed_training_is_a_failed_run(tmp_path):
    uri = resolve_tracking_uri(tmp_path)
    run_dir, config = new_run(tmp_path, uri)
    tracker = Tracker.start(run_dir, config, attempt=1, world_size=1)
    assert tracker.close("FAILED", timeout_s=60)
    assert open_client(uri).get_run(tracker.run_id).info.status == "FAILED"


def test_a_killed_training_does_not_stay_running(tmp_path):
    uri = resolve_tracking_uri(tmp_path)
    run_dir, _ = new_run(tmp_path, uri)
    program = f"""
        import json, sys, time
        from pathlib import Path
        from pipeline.tracking import Tracker
        run_dir = Path({str(run_dir)!r})
        tracker = Tracker.start(run_dir, json.loads((run_dir / "config.json").read_text()), attempt=1, world_size=1)
        while tracker.run_id is None:
            time.sleep(0.05)
        print("tracked", flush=True)
        time.sleep(600)
    """
    training = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=REPOSITORY, stdout=subprocess.PIPE, start_new_session=True
    )
    assert training.stdout.readline() == b"tracked\n"
    os.kill(training.pid, signal.SIGKILL)
    training.wait()
    training.stdout.close()
    wait_for(lambda: load_state(run_dir).sent_status == "KILLED", 60)
    assert open_client(uri).get_run(load_state(run_dir).run_id).info.status == "KILLED"


def test_a_dead_server_is_named_once_and_synced_later(tmp_path, server, capfd, caplog):
    port = free_port()
    run_dir, config = new_run(tmp_path, f"http://127.0.0.1:{port}")
    began = time.monotonic()
    tracker = Tracker.start(run_dir, config, attempt=1, world_size=1)
    append_records(run_dir, range(1, 11))
    tracker.durable(10)
    assert time.monotonic() - began < 5
    assert not tracker.close("FINISHED", timeout_s=5)
    assert f"python -m pipeline.status --sync {run_dir}" in caplog.text
    assert tracker.run_id is None

    # The same server, now at an address that answers.
    (run_dir / "config.json").write_text(json.dumps({**config, "tracking_uri": server.uri}))
    assert "status FINISHED" in sync_run(run_dir)
    assert "nothing was missing" in sync_run(run_dir)
    run = open_client(server.uri).get_run(load_state(run_dir).run_id)
    assert run.info.status == "FINISHED"
    assert history(server.uri, run.info.run_id) == list(range(1, 11))


@pytest.mark.slow
def test_a_server_that_comes_back_gets_everything(tmp_path, server, capfd):
    relay = Relay(server.port)
    with relay:
        relay.mode = "broken"
        run_dir, config = new_run(tmp_path, relay.uri)
        tracker = Tracker.start(run_dir, config, attempt=1, world_size=1)
        append_records(run_dir, range(1, 11))
        tracker.durable(5)
        wait_for(lambda: relay.served > RETRIES, 60)
        relay.mode = "pass"
        tracker.durable(10)
        wait_for(lambda: (load_state(run_dir) or object).shipped_step == 10, 60)
        # Down in the middle, slow at the end.
        relay.mode = "broken"
        append_records(run_dir, range(11, 21))
        served = relay.served
        tracker.durable(20)
        wait_for(lambda: relay.served > served + RETRIES, 60)
        relay.mode = "slow"
        assert tracker.close("FINISHED", timeout_s=60)
        assert history(server.uri, tracker.run_id) == list(range(1, 21))
    said = capfd.readouterr().err
    assert said.count("does not take what is sent") <= 2
    assert "answers again" in said


@pytest.mark.parametrize("trouble", ["login", pytest.param("certificate", marks=pytest.mark.slow)])
def test_a_server_that_refuses_is_said_in_one_line(tmp_path, server, capfd, trouble):
    certificate = self_signed_certificate(tmp_path) if trouble == "certificate" else None
    with Relay(server.port, certificate) as relay:
        relay.mode = "login" if trouble == "login" else "pass"
        uri = relay.uri.replace("://", "://someone:s3cret-word@")
        run_dir, config = new_run(tmp_path, uri)
        tracker = Tracker.start(run_dir, config, attempt=1, world_size=1)
        assert not tracker.close("FINISHED", timeout_s=8)
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if "does not take what is sent" in line]
    assert len(lines) == 1
    assert (
        ("401" in lines[0] or "authenticated" in lines[0]) if trouble == "login" else "certificate" in lines[0].lower()
    )
    everything = said + "".join(path.read_text() for path in run_dir.glob("mlflow.json"))
    assert "s3cret-word" not in everything
    assert "Traceback" not in said


def test_secrets_are_masked():
    masked = mask_secrets(
        "postgresql://me:pa55@db/x s3://KEY:pa55@bucket/x?secret_key=pa55&region=eu https://pa55@h/ token=pa55"
    )
    assert "pa55" not in masked
    assert "postgresql://me:***@db/x" in masked
    assert "region=eu" in masked
    assert mask_secrets("s3://bucket/a@b http://host:5000/x") == "s3://bucket/a@b http://host:5000/x"
