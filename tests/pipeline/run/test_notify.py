"""One POST of JSON when a run ends, fails, is given up or becomes the champion; no web server can harm a training."""

import json
import os
import socket
import time

import pytest

from jobs import Outcome, attempt_log
from pipeline.common.errors import PipelineError
from pipeline.launch.command import main
from pipeline.run import notify
from pipeline.train.job_task import TrainTask
from tests.support.listener import Listener
from tests.support.tracking_runs import append_event, append_records


@pytest.fixture
def begun(run_dir):
    append_event(run_dir, "start", 1, 0, step=0, world_size=2)
    append_records(run_dir, range(1, 21))
    return run_dir


@pytest.mark.parametrize(
    ("outcome", "logged", "event"),
    [
        (Outcome.FINISHED, "finished", "finished"),
        # Also where a job of a chain sees that one before it has failed, and so calls no task.
        pytest.param(Outcome.FAILED, "failed", "failed", marks=pytest.mark.thorough),
        pytest.param(Outcome.CANCELLED, "cancelled", "cancelled", marks=pytest.mark.thorough),
        (Outcome.FAILED, "given up", "given up"),
        pytest.param(Outcome.STOPPED, "stopped", "stopped", marks=pytest.mark.thorough),
        (Outcome.INTERRUPTED, "requeued", None),
    ],
)
def test_each_end_is_told_once(begun, monkeypatch, outcome, logged, event):
    monkeypatch.setenv("JOB_ID", "7")
    (begun / "submitit").mkdir(exist_ok=True)
    attempt_log.append(begun / "submitit", "end", job_id="7", restarts=0, outcome=logged)
    with Listener() as listener:
        notify.remember(begun, listener.address)
        TrainTask(begun).ended(outcome)
    assert [post["event"] for post in listener.posts] == ([event] if event else [])
    for post in listener.posts:
        assert (post["run"], post["model"], post["step"], post["total_steps"]) == ("run", "transxnet_n", 20, 100)
        assert post["text"].startswith(f"run (transxnet_n): {event} at step 20, top-1 ")


def test_an_end_that_cannot_be_recorded_is_told(begun, monkeypatch):
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("the tracking state is damaged")

    monkeypatch.setattr("pipeline.tracking.settle.settle_after_end", fail)
    with Listener() as listener:
        notify.remember(begun, listener.address)
        with pytest.raises(RuntimeError, match="damaged"):
            TrainTask(begun).ended(Outcome.FAILED)
    assert [post["event"] for post in listener.posts] == ["failed"]


def test_secrets_are_masked_and_the_address_is_read_by_its_user_alone(begun, monkeypatch):
    monkeypatch.setenv("JOB_ID", "https://me:hunter2@cluster/7")
    with Listener() as listener:
        notify.remember(begun, listener.address)
        assert os.stat(begun / notify.FILE_NAME).st_mode & 0o777 == 0o600
        notify.notify(begun, "failed")
    assert "hunter2" not in json.dumps(listener.posts)
    assert notify.hide_address(["--nodes", "2", "--notify", "https://h/secret", "--notify=https://h/secret"]) == [
        *("--nodes", "2", "--notify", "***", "--notify=***")
    ]


def test_an_address_that_refuses_or_is_silent_is_one_line_and_holds_up_nothing(begun, monkeypatch, capfd):
    with Listener(status=404) as listener:
        notify.remember(begun, listener.address)
        notify.notify(begun, "finished")
    assert "--notify: 127.0.0.1 was not told that this run is finished: 404 Not Found" in capfd.readouterr().out
    monkeypatch.setattr(notify, "_PATIENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        notify.remember(begun, f"http://127.0.0.1:{silent.getsockname()[1]}/secret-room")
        began = time.monotonic()
        notify.notify(begun, "finished")
        assert time.monotonic() - began < 3
    said = capfd.readouterr().out
    assert "127.0.0.1 was not told that this run is finished: it does not answer" in said
    assert "secret-room" not in said


@pytest.mark.parametrize("address", ["room", "ftp://host/x", "https://", "http://host:99999999/x"])
def test_what_is_no_web_address_is_refused_before_anything_is_done(address, tmp_path, monkeypatch, capsys):
    with pytest.raises(PipelineError, match=f"--notify {address} is no web address: give one like https://HOST/PATH"):
        notify.check_address(address)
    monkeypatch.chdir(tmp_path)
    assert main(["--recipe", "demo", "--notify", address, "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --notify {address} is no web address")
    assert not list(tmp_path.iterdir())
