"""One MLflow run for a training, whatever happens to its processes and to the server."""

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs import Update
from pipeline.config.schema import DataConfig, ModelConfig, TrainConfig
from pipeline.launch.progress import Progress
from pipeline.run import system as tracking_system
from pipeline.run.status import read_status
from pipeline.status.show import lines, table
from pipeline.status.sync import sync_run
from pipeline.tracking import worker as tracking_worker
from pipeline.tracking.client import open_client
from pipeline.tracking.shipper import Shipper
from pipeline.tracking.state import load_state
from pipeline.tracking.tracker import Tracker, resolve_tracking_uri
from tests.support import REPOSITORY
from tests.support.tracking_runs import append_records, config_json, new_store, write_checkpoint
from tests.support.tracking_servers import MlflowServer, Relay, free_port, self_signed_certificate, wait_for

RETRIES = 1
"""What MLflow's client tries again by itself, unseen by the worker."""


@pytest.fixture(scope="module", autouse=True)
def launched(request, tmp_path_factory):
    """A server that gets ready while the first tests wait for other things; not launched where no test needs it."""
    folder = tmp_path_factory.mktemp("server")
    server = MlflowServer(folder, store=new_store(folder))
    if any("server" in item.fixturenames for item in request.session.items if item.path == request.path):
        server.launch()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def server(launched):
    return launched.start()


def new_run(folder: Path, uri: str | None, name: str = "run", shards: str = "missing") -> tuple[Path, dict]:
    config = TrainConfig(model=ModelConfig(name="transxnet_n"), data=DataConfig(shards=shards))
    return folder / name, config_json(folder / name, config, uri)


def history(uri: str, run_id: str, metric: str = "train/loss") -> list[int]:
    return [entry.step for entry in open_client(uri).get_metric_history(run_id, metric)]


def shipped_step(run_dir: Path) -> int:
    state = load_state(run_dir)
    return -1 if state is None else state.shipped_step


def test_two_attempts_are_one_run_with_each_step_once(tmp_path):
    uri = resolve_tracking_uri(tmp_path)
    run_dir, config = new_run(tmp_path / "runs", uri)
    tracker = Tracker.start(run_dir, config, attempt=1, world_size=2, tags={"job_id": "7"})
    append_records(run_dir, range(1, 26))
    write_checkpoint(run_dir, 20)
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
    write_checkpoint(run_dir, 40)
    shutil.rmtree(run_dir / "checkpoints/step_00000020")
    assert tracker.close("FINISHED", timeout_s=60)

    run = open_client(uri).get_run(first)
    assert tracker.run_id == first
    assert run.info.status == "FINISHED"
    assert history(uri, first) == list(range(1, 41))
    assert history(uri, first, "eval/top1") == [10, 20, 30, 40]
    assert run.data.tags["attempt"] == "2"
    assert run.data.tags["world_sizes"] == "2, 4"
    assert run.data.tags["job_ids"] == "7"
    assert run.data.params["optimizer.lr"] == "0.002"
    artifacts = {item.path for item in open_client(uri).list_artifacts(first, "report")}
    assert artifacts == {"report/report.md", "report/training.png"}
    assert "| 2 |" in run.data.tags["mlflow.note.content"]
    picture = f"(get-artifact?path=report%2Ftraining.png&run_uuid={first})"
    assert picture in run.data.tags["mlflow.note.content"]
    assert run.data.tags["mlflow.source.name"] == "pipeline.launch"
    assert run.data.tags["command"] == config["command"]
    # The checkpoint that is kept is a model of the run, with its metrics and without a copy of its files.
    models = open_client(uri).search_logged_models([run.info.experiment_id])
    assert [(model.name, model.tags["checkpoint"]) for model in models] == [
        ("step_00000040", str(run_dir / "checkpoints/step_00000040"))
    ]
    assert {metric.key: metric.value for metric in models[0].metrics}["eval/top1"] == 0.8
    assert not list(tmp_path.rglob("mlartifacts/**/state.bin"))
    # Nothing beside the database and its artifacts was made.
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"mlflow.db", "mlartifacts", "run"}


def test_a_failed_training_is_a_failed_run(tmp_path):
    uri = new_store(tmp_path)
    run_dir, _ = new_run(tmp_path, uri)
    shipper = Shipper(run_dir)
    shipper.begin({"attempt": "1"})
    began = time.time()
    shipper.end("FAILED")
    shipper.ship(0)
    shipper.send_status()
    info = open_client(uri).get_run(shipper.state.run_id).info
    assert info.status == "FAILED"
    # The run's times are the training's, however late the server hears of it.
    assert info.start_time / 1000 == pytest.approx(began, abs=5)
    assert info.start_time <= info.end_time


def test_every_evaluation_renews_the_report_while_the_training_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking_worker, "REPORT_EVERY_S", 0)
    monkeypatch.setattr(tracking_worker, "PAUSE_S", 0.05)
    uri = new_store(tmp_path)
    run_dir, _ = new_run(tmp_path, uri)
    inbox = queue.Queue()
    shipper = Shipper(run_dir)
    with ThreadPoolExecutor(1) as pool:
        inbox.put({"begin": {"attempt": 1}})
        work = pool.submit(tracking_worker._work, shipper, inbox)
        pages = []
        for last in (10, 20):
            append_records(run_dir, range(last - 9, last + 1))
            wait_for(lambda last=last: work.done() or load_state(run_dir).reported_step == last, 60, 0.02)
            pages.append(open_client(uri).get_run(shipper.state.run_id).data.tags["mlflow.note.content"])
        assert open_client(uri).get_run(shipper.state.run_id).info.status == "RUNNING"
        inbox.put({"close": "FINISHED", "timeout_s": 30})
        assert work.result(60) == tracking_worker.EXIT_SHIPPED
    assert ["top-1 20.00 %" in page for page in pages] == [True, False]
    assert "top-1 40.00 %" in pages[1]
    # Going back to a checkpoint writes the file anew, and shorter.
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "aside").write_text("".join(lines[:12]))
    (run_dir / "aside").replace(run_dir / "metrics.jsonl")
    assert shipper.evaluated_step() == 10


def test_each_node_has_its_own_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking_system, "EVERY_S", 0.05)
    uri = new_store(tmp_path)
    run_dir, _ = new_run(tmp_path, uri)
    monitors = [tracking_system.SystemMonitor.start(run_dir, node) for node in (0, 1)]
    files = [run_dir / f"system/node_{node}.jsonl" for node in (0, 1)]
    wait_for(lambda: all(file.exists() and file.read_bytes().count(b"\n") >= 3 for file in files), 30, 0.02)
    for monitor in monitors:
        monitor.stop()
    shipper = Shipper(run_dir)
    shipper.begin({"attempt": "1"})
    shipper.ship(0)
    # One node goes on for a while; the other one's last line is not whole.
    last = json.loads(files[1].read_text().splitlines()[-1])
    with open(files[1], "a") as file:
        file.write(json.dumps(last | {"time": last["time"] + 60, "cpu_percent": 7.0}) + "\n")
    with open(files[0], "a") as file:
        file.write('{"time": 1')
    shipper.ship(0)
    client, run_id = open_client(uri), shipper.state.run_id
    names = client.get_run(run_id).data.metrics.keys()
    assert {name.rsplit("/", 1)[0] for name in names} == {"system/node_0", "system/node_1"}
    history = [client.get_metric_history(run_id, f"system/node_{node}/cpu_percent") for node in (0, 1)]
    assert [len(rows) for rows in history] == [file.read_bytes().count(b"\n") for file in files]
    assert history[1][-1].value == 7.0
    assert history[1][-1].step - history[1][0].step in (60, 61)


def test_a_killed_training_does_not_stay_running(tmp_path):
    uri = new_store(tmp_path)
    run_dir, _ = new_run(tmp_path, uri)
    program = f"""
        import json, sys, time
        from pathlib import Path
        from pipeline.tracking.tracker import Tracker
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
    wait_for(lambda: load_state(run_dir).sent_status == "RUNNING", 60)
    assert open_client(uri).get_run(load_state(run_dir).run_id).info.status == "RUNNING"
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
    progress = Progress({"": run_dir}, 10)
    wait_for(lambda: (state := load_state(run_dir)) is not None and state.behind_since is not None, 60)
    progress.show("", Update(state="RUNNING"))
    progress.show("", Update(state="RUNNING"))
    said = capfd.readouterr().out
    assert said.count("tracking is behind: 10 steps wait for MLflow at http://127.0.0.1:") == 1
    assert "Connection refused" in said
    assert "; they are kept in metrics.jsonl and sent when it answers\n" in said
    assert "  unsent 10" in said
    assert not tracker.close("FINISHED", timeout_s=0.5)
    shown = "\n".join(lines(read_status(run_dir), time.time()))
    assert "10 steps wait for MLflow at" in shown
    assert f"to send: python -m pipeline.status --sync {run_dir}" in shown
    assert "unsent" in table([read_status(run_dir)], tmp_path)[0]
    assert f"python -m pipeline.status --sync {run_dir}" in caplog.text
    assert tracker.run_id is None

    # The same server, now at an address that answers.
    (run_dir / "config.json").write_text(json.dumps({**config, "tracking_uri": server.uri}))
    assert "status FINISHED" in sync_run(run_dir)
    assert "nothing was missing" in sync_run(run_dir)
    progress.show("", Update(state="COMPLETED"))
    assert "MLflow takes what is sent again; nothing was lost" in capfd.readouterr().out
    shown = "\n".join([*lines(read_status(run_dir), time.time()), *table([read_status(run_dir)], tmp_path)])
    assert "up to step 10\n" in shown
    assert "unsent" not in shown
    run = open_client(server.uri).get_run(load_state(run_dir).run_id)
    assert run.info.status == "FINISHED"
    assert history(server.uri, run.info.run_id) == list(range(1, 11))


@pytest.mark.slow
def test_a_server_killed_while_it_takes_steps_has_each_once_when_it_is_back(tmp_path, capfd):
    with MlflowServer(tmp_path / "server") as server:
        run_dir, config = new_run(tmp_path, server.uri)
        tracker = Tracker.start(run_dir, config, attempt=1, world_size=1)
        append_records(run_dir, range(1, 4001))
        tracker.durable(4000)
        wait_for(lambda: shipped_step(run_dir) > 0, 60, 0.01)
        server.kill()
        slowest = 0.0
        for step in range(4001, 4091):
            began = time.monotonic()
            append_records(run_dir, range(step, step + 1))
            tracker.durable(step)
            slowest = max(slowest, time.monotonic() - began)
            time.sleep(1)
        assert slowest < 1
        assert shipped_step(run_dir) < 4000
        server.start()
        assert tracker.close("FINISHED", timeout_s=120)
        assert sorted(history(server.uri, tracker.run_id)) == list(range(1, 4091))
        assert open_client(server.uri).get_run(tracker.run_id).info.status == "FINISHED"
    said = capfd.readouterr().err
    assert said.count("does not take what is sent") == 1
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_server_that_hangs_does_not_keep_a_job_from_its_requeue(tmp_path, caplog):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        run_dir, config = new_run(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracker = Tracker.start(run_dir, config, attempt=1, world_size=1)
        append_records(run_dir, range(1, 11))
        tracker.durable(10)
        silent.accept()
        began = time.monotonic()
        assert not tracker.close(None)
        # Slurm's usual grace is 30 s, and one request that is not answered takes 20.
        assert time.monotonic() - began < 10
    assert not caplog.text, "the next attempt sends it"
    # The next attempt finds what to send.
    (run_dir / "config.json").write_text(json.dumps(config | {"tracking_uri": new_store(tmp_path)}))
    tracker = Tracker.start(run_dir, json.loads((run_dir / "config.json").read_text()), attempt=2, world_size=1)
    assert tracker.close("FINISHED")
    assert history(resolve_tracking_uri(tmp_path), tracker.run_id) == list(range(1, 11))


@pytest.mark.slow
def test_a_slow_server_holds_nobody_up_and_gets_everything(tmp_path, server):
    with Relay(server.port) as relay:
        relay.mode = "slow"
        run_dir, config = new_run(tmp_path, relay.uri)
        began = time.monotonic()
        tracker = Tracker.start(run_dir, config, attempt=1, world_size=1)
        for step in range(1, 51):
            append_records(run_dir, range(step, step + 1))
            tracker.durable(step)
        assert time.monotonic() - began < 2, "one answer takes as long"
        assert tracker.close("FINISHED", timeout_s=200)
        assert history(server.uri, tracker.run_id) == list(range(1, 51))
        assert open_client(server.uri).get_run(tracker.run_id).info.status == "FINISHED"


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
        wait_for(lambda: shipped_step(run_dir) == 10, 60)
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
def test_a_server_that_refuses_is_said_in_one_line(tmp_path, capfd, trouble):
    certificate = self_signed_certificate(tmp_path) if trouble == "certificate" else None
    # Nothing gets through to a server behind it.
    with Relay(free_port(), certificate) as relay:
        relay.mode = "login" if trouble == "login" else "pass"
        uri = relay.uri.replace("://", "://someone:s3cret-word@")
        run_dir, config = new_run(tmp_path, uri)
        tracker = Tracker.start(run_dir, config, attempt=1, world_size=1)
        assert not tracker.close("FINISHED", timeout_s=5)
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if "does not take what is sent" in line]
    assert len(lines) == 1
    assert (
        ("401" in lines[0] or "authenticated" in lines[0]) if trouble == "login" else "certificate" in lines[0].lower()
    )
    everything = said + "".join(path.read_text() for path in run_dir.glob("mlflow.json"))
    assert "s3cret-word" not in everything
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_database_whose_making_was_killed_is_made_by_the_next_two_at_once(tmp_path):
    """MLflow builds it table by table; half of one could never be opened again."""
    uri, folder = resolve_tracking_uri(tmp_path), tmp_path / "runs"
    command = [sys.executable, "-c", f"from pipeline.tracking.client import open_client; open_client({uri!r})"]
    killed = subprocess.Popen(command, cwd=REPOSITORY)
    wait_for(lambda: any(path.stat().st_size > 50_000 for path in folder.glob(".mlflow.db.*[!l]")), 120)
    killed.kill()
    killed.wait()
    assert not (folder / "mlflow.db").exists()
    both = [subprocess.Popen(command, cwd=REPOSITORY) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert open_client(uri).get_experiment("0").name == "Default"
