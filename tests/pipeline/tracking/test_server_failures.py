"""A tracking server that is dead, slow or refusing does not delay the training, and receives every step later."""

import json
import socket
import time
from pathlib import Path

import pytest

from jobs import Update
from pipeline.launch.progress import Progress
from pipeline.run.status import read_status
from pipeline.status.show import format_run, format_table
from pipeline.status.sync import sync_run
from pipeline.tracking.client import open_client, resolve_tracking_uri
from pipeline.tracking.state import load_state
from pipeline.tracking.tracker import Tracker
from tests.pipeline.tracking.runs import history, new_run
from tests.support.tracking_runs import append_records, new_store
from tests.support.tracking_servers import MlflowServer, Relay, free_port, self_signed_certificate, wait_for

RETRIES = 1
"""Retries of MLflow's client, which the worker does not see."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with MlflowServer(folder, store=new_store(folder)) as running:
        yield running


@pytest.fixture(params=["database", pytest.param("server", marks=pytest.mark.thorough)])
def answering_uri(request, tmp_path):
    """URI of a store that answers."""
    return new_store(tmp_path / "store") if request.param == "database" else request.getfixturevalue("server").uri


def shipped_step(run_dir: Path) -> int:
    state = load_state(run_dir)
    return -1 if state is None else state.shipped_step


def test_an_unreachable_server_is_reported_once_and_synced_later(tmp_path, answering_uri, capfd, caplog):
    port = free_port()
    run_dir, config = new_run(tmp_path, f"http://127.0.0.1:{port}")
    began = time.monotonic()
    tracker = Tracker.start(run_dir, attempt=1, world_size=1)
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
    shown = "\n".join(format_run(read_status(run_dir), time.time()))
    assert "10 steps wait for MLflow at" in shown
    assert f"to send: python -m pipeline.status --sync {run_dir}" in shown
    assert "unsent" in format_table([read_status(run_dir)], tmp_path)[0]
    assert f"python -m pipeline.status --sync {run_dir}" in caplog.text
    assert tracker.run_id is None

    # The same run with a store that answers.
    (run_dir / "config.json").write_text(json.dumps({**config, "tracking_uri": answering_uri}))
    assert "status FINISHED" in sync_run(run_dir)
    assert "nothing was missing" in sync_run(run_dir)
    progress.show("", Update(state="COMPLETED"))
    assert "MLflow takes what is sent again; nothing was lost" in capfd.readouterr().out
    shown = "\n".join([*format_run(read_status(run_dir), time.time()), *format_table([read_status(run_dir)], tmp_path)])
    assert "up to step 10\n" in shown
    assert "unsent" not in shown
    run = open_client(answering_uri).get_run(load_state(run_dir).run_id)
    assert run.info.status == "FINISHED"
    assert history(answering_uri, run.info.run_id) == list(range(1, 11))


@pytest.mark.slow
def test_a_server_killed_while_it_receives_steps_has_each_once_after_its_restart(tmp_path, capfd):
    with MlflowServer(tmp_path / "server") as server:
        run_dir, _ = new_run(tmp_path, server.uri)
        tracker = Tracker.start(run_dir, attempt=1, world_size=1)
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
def test_a_hanging_server_does_not_delay_a_requeue(tmp_path, caplog):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        run_dir, config = new_run(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracker = Tracker.start(run_dir, attempt=1, world_size=1)
        append_records(run_dir, range(1, 11))
        tracker.durable(10)
        silent.accept()
        began = time.monotonic()
        assert not tracker.close(None)
        # Slurm's usual grace is 30 s; a request without an answer times out after 20 s.
        assert time.monotonic() - began < 10
    assert not caplog.text, "the next attempt will send it"
    # The next attempt sends the steps.
    (run_dir / "config.json").write_text(json.dumps(config | {"tracking_uri": new_store(tmp_path)}))
    tracker = Tracker.start(run_dir, attempt=2, world_size=1)
    assert tracker.close("FINISHED")
    assert history(resolve_tracking_uri(tmp_path), tracker.run_id) == list(range(1, 11))


@pytest.mark.slow
def test_a_slow_server_does_not_delay_the_training_and_receives_every_step(tmp_path, server):
    with Relay(server.port) as relay:
        relay.mode = "slow"
        run_dir, _ = new_run(tmp_path, relay.uri)
        began = time.monotonic()
        tracker = Tracker.start(run_dir, attempt=1, world_size=1)
        for step in range(1, 51):
            append_records(run_dir, range(step, step + 1))
            tracker.durable(step)
        assert time.monotonic() - began < 2, "an answer of the server takes this long"
        assert tracker.close("FINISHED", timeout_s=200)
        assert history(server.uri, tracker.run_id) == list(range(1, 51))
        assert open_client(server.uri).get_run(tracker.run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_a_server_that_recovers_receives_every_step(tmp_path, server, capfd):
    relay = Relay(server.port)
    with relay:
        relay.mode = "broken"
        run_dir, _ = new_run(tmp_path, relay.uri)
        tracker = Tracker.start(run_dir, attempt=1, world_size=1)
        append_records(run_dir, range(1, 11))
        tracker.durable(5)
        wait_for(lambda: relay.served > RETRIES, 60)
        relay.mode = "pass"
        tracker.durable(10)
        wait_for(lambda: shipped_step(run_dir) == 10, 60)
        # The server fails again and is slow at the end.
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


@pytest.mark.thorough
@pytest.mark.parametrize("trouble", ["login", pytest.param("certificate", marks=pytest.mark.slow)])
def test_a_refusing_server_is_reported_in_one_line(tmp_path, capfd, trouble):
    certificate = self_signed_certificate(tmp_path) if trouble == "certificate" else None
    # The relay answers every request itself.
    with Relay(free_port(), certificate) as relay:
        relay.mode = "login" if trouble == "login" else "pass"
        uri = relay.uri.replace("://", "://someone:s3cret-word@")
        run_dir, _ = new_run(tmp_path, uri)
        tracker = Tracker.start(run_dir, attempt=1, world_size=1)
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
