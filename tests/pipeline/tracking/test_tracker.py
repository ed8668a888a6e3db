"""A training is one MLflow run over all its attempts, with each step once."""

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.run import system as tracking_system
from pipeline.run.evaluations import write_evaluation
from pipeline.run.journal import Journal
from pipeline.run.micro_batch import FoundMicroBatch, write_micro_batch
from pipeline.tracking import worker as tracking_worker
from pipeline.tracking.client import open_client
from pipeline.tracking.shipper import Shipper
from pipeline.tracking.state import load_state
from pipeline.tracking.tracker import Tracker
from tests.pipeline.tracking.runs import history, new_run
from tests.support import REPOSITORY
from tests.support.tracking_runs import START, append_records, new_store, write_checkpoint
from tests.support.tracking_servers import wait_for


def test_two_attempts_are_one_run_with_each_step_once(tmp_path):
    uri = new_store(tmp_path)
    run_dir, _ = new_run(tmp_path / "runs", uri, micro_batch_size="auto")
    write_micro_batch(run_dir, FoundMicroBatch(micro_batch_size=16, world_size=2, decided_by="rank 1 on n2, a GPU"))
    tracker = Tracker.start(run_dir, attempt=1, world_size=2, tags={"job_id": "7"})
    append_records(run_dir, range(1, 26))
    write_checkpoint(run_dir, 20)
    tracker.durable(20)
    assert tracker.close(None, timeout_s=60)
    first = tracker.run_id
    run = open_client(uri).get_run(first)
    assert run.info.status == "SCHEDULED"
    assert run.data.tags["micro_batch_size_found"] == "16 (found in the memory of rank 1 on n2, a GPU)"
    assert history(uri, first) == list(range(1, 21))

    # The second attempt is given another micro-batch, resumes at the checkpoint and computes steps 21 to 25 again.
    _, config = new_run(tmp_path / "runs", uri, micro_batch_size=8)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(lines[:20]))
    tracker = Tracker.start(run_dir, attempt=2, world_size=4)
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
    assert "micro_batch_size_found" not in run.data.tags
    assert run.data.params["optimizer.lr"] == "0.002"
    artifacts = {item.path for item in open_client(uri).list_artifacts(first, "report")}
    assert artifacts == {"report/report.md", "report/training.png"}
    assert "| 2 |" in run.data.tags["mlflow.note.content"]
    picture = f"(get-artifact?path=report%2Ftraining.png&run_uuid={first})"
    assert picture in run.data.tags["mlflow.note.content"]
    assert run.data.tags["mlflow.source.name"] == "pipeline.launch"
    assert run.data.tags["command"] == config["command"]
    assert run.data.tags["published_result"] == "81.6 % top-1"
    assert run.data.tags["published_differences"] == "bf16 instead of fp16; another seed"
    # The retained checkpoint is a model of the MLflow run, with its metrics and without a copy of its files.
    models = open_client(uri).search_logged_models([run.info.experiment_id])
    assert [(model.name, model.tags["checkpoint"]) for model in models] == [
        ("step_00000040", str(run_dir / "checkpoints/step_00000040"))
    ]
    assert {metric.key: metric.value for metric in models[0].metrics}["eval/top1"] == 0.8
    assert not list(tmp_path.rglob("mlartifacts/**/state.bin"))
    # Only the database and its artifacts were created.
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"mlflow.db", "mlartifacts", "run"}


def test_an_evaluation_that_is_made_later_is_sent_once_at_its_step(tmp_path):
    uri = new_store(tmp_path)
    run_dir, _ = new_run(tmp_path / "runs", uri)
    append_records(run_dir, range(1, 21), eval_every=15)
    write_checkpoint(run_dir, 20)
    shipper = Shipper(run_dir)
    shipper.ship(20)
    write_evaluation(run_dir, 20, {"top1": 0.5, "top5": 0.75, "loss": 0.25}, seconds=3.0)
    # A resumed training writes it into the records too.
    Journal(run_dir, 20).close()
    for sender in (shipper, Shipper(run_dir)):
        sender.ship(20)
    run_id = shipper.state.run_id
    assert run_id is not None
    history = [(m.step, m.value, m.timestamp) for m in open_client(uri).get_metric_history(run_id, "eval/top1")]
    assert history == [(15, 0.3, int(1000 * START) + 15000), (20, 0.5, int(1000 * START) + 20000)]
    assert shipper.evaluated_step() == 20
    (model,) = open_client(uri).search_logged_models([shipper.state.experiment_id or ""])
    assert {metric.key: metric.value for metric in model.metrics} == {
        "eval/top1": 0.5,
        "eval/top5": 0.75,
        "eval/loss": 0.25,
    }


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
    # MLflow's start and end times are the training's.
    assert info.start_time / 1000 == pytest.approx(began, abs=5)
    assert info.start_time <= info.end_time


@pytest.mark.thorough
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
    # A return to a checkpoint replaces the file by a shorter one.
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "aside").write_text("".join(lines[:12]))
    (run_dir / "aside").replace(run_dir / "metrics.jsonl")
    assert shipper.evaluated_step() == 10


def test_each_node_has_its_own_metrics(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking_system, "FIRST_EVERY_S", 0.05)
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
    # Node 1 writes another line; node 0's last line is incomplete.
    last = json.loads(files[1].read_text().splitlines()[-1])
    with open(files[1], "a", encoding="utf-8") as file:
        file.write(json.dumps(last | {"time": last["time"] + 60, "cpu_percent": 7.0}) + "\n")
    with open(files[0], "a", encoding="utf-8") as file:
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
        import time
        from pathlib import Path
        from pipeline.tracking.tracker import Tracker
        run_dir = Path({str(run_dir)!r})
        tracker = Tracker.start(run_dir, attempt=1, world_size=1)
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
