"""How a run stands is told from its files alone, at every stage of its life."""

import dataclasses
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.presence import claim
from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.run.files import read_metrics
from pipeline.run.report import draw, markdown, write_report
from pipeline.run.status import read_status, run_state
from pipeline.status.command import main
from pipeline.status.show import lines, table
from pipeline.tracking.state import TrackingState, save_state
from tests.support import REPOSITORY
from tests.support.tracking_runs import START, append_records, config_json, write_checkpoint


def event(run_dir: Path, kind: str, attempt: int, at: float, **fields) -> None:
    with open(run_dir / "attempts.jsonl", "a") as file:
        file.write(json.dumps({"event": kind, "attempt": attempt, "time": START + at, **fields}) + "\n")


@pytest.fixture
def run_dir(tmp_path):
    config_json(tmp_path / "run", TrainConfig(steps=100, model=ModelConfig(name="transxnet_n")), None)
    return tmp_path / "run"


def test_a_run_from_submission_to_its_end(run_dir):
    assert run_state(run_dir) == "submitted"
    with open(run_dir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        event(run_dir, "start", 1, 0, step=0, world_size=4)
        append_records(run_dir, range(1, 21))
        status = read_status(run_dir, now=START + 25)
        assert (status.state, status.step, status.total_steps) == ("running", 20, 100)
        assert status.remaining_s == pytest.approx(80)
        assert status.images_per_s == pytest.approx(1024)
        assert status.checkpoint_step is None
    assert run_state(run_dir) == "killed"
    write_checkpoint(run_dir, 20)
    event(run_dir, "end", 1, 22, outcome="interrupted")
    assert run_state(run_dir) == "interrupted"
    event(run_dir, "start", 2, 60, step=20, world_size=2)
    append_records(run_dir, range(21, 101), attempt=2, start=START + 40)
    event(run_dir, "end", 2, 142, outcome="finished")
    status = read_status(run_dir)
    assert status.state == "finished"
    assert [(span.number, span.first_step, span.world_size, span.outcome) for span in status.attempts] == [
        (1, 0, 4, "interrupted"),
        (2, 20, 2, "finished"),
    ]
    assert status.attempts[0].ended - status.attempts[0].started == 22
    assert status.checkpoint_step == 20
    assert status.remaining_s is None


def test_a_job_that_failed_says_so_while_it_still_closes(run_dir):
    with open(run_dir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        event(run_dir, "start", 1, 0, step=0, world_size=1)
        event(run_dir, "end", 1, time.time() - START + 60, outcome="failed")
        assert run_state(run_dir) == "failed"


def test_goodput_counts_only_steps_that_stay(run_dir):
    event(run_dir, "start", 1, 0, step=0, world_size=1)
    event(run_dir, "start", 2, 90, step=10, world_size=1)
    event(run_dir, "end", 2, 100, outcome="finished")
    records = [{"step": k, "time": START + k, "step_s": 2.5} for k in range(1, 21)]
    assert read_status(run_dir).goodput is None
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    # Twenty steps of 2.5 s in 100 s; what the first attempt computed after its save is lost and not there.
    status = read_status(run_dir)
    assert status.goodput == pytest.approx(0.5)
    assert any("goodput 50.0 % of 100.0 s: steps 50.0 s" in line for line in lines(status, START))


def test_the_report_shows_the_same(run_dir):
    event(run_dir, "start", 1, 0, step=0, world_size=4)
    append_records(run_dir, range(1, 31))
    event(run_dir, "save", 1, 31, step=30, stall_s=0.5)
    event(run_dir, "start", 2, 60, step=30, world_size=2)
    folder = write_report(run_dir)
    text = (folder / "report.md").read_text()
    assert "**transxnet_n: top-1 60.00 %, killed at step 30**" in text
    assert "| steps | 30 of 100 |" in text
    assert [line.split(" | ")[3:] for line in text.splitlines() if line.startswith(("| 1 |", "| 2 |"))] == [
        ["4", "0", "0.0 %", "killed |"],
        ["2", "30", "", "killed |"],
    ]
    assert 'load_model("models:/transxnet_n@champion")' in text
    named = {"train": json_train(run_dir), "registered_name": "toy"}
    assert 'load_model("models:/toy@champion")' in markdown(read_status(run_dir), [], named, {})
    assert (folder / "training.png").read_bytes().startswith(b"\x89PNG")
    # One record, or one evaluation without the rest, is drawn too.
    status = read_status(run_dir)
    records = read_metrics(run_dir)[:1]
    draw(folder / "one.png", run_dir, status, records)
    assert "not evaluated" in markdown(
        dataclasses.replace(status, attempts=[]), records, {"train": json_train(run_dir)}, {}
    )


def json_train(run_dir: Path) -> dict:
    return json.loads((run_dir / "config.json").read_text())["train"]


def test_what_is_printed(run_dir, capsys):
    append_records(run_dir, range(1, 11))
    status = read_status(run_dir)
    assert "10/100 (10 %)" in "\n".join(lines(status, START))
    assert table([status], run_dir.parent)[1].split()[:4] == ["run", "transxnet_n", "submitted", "1"]
    assert main(runs=run_dir.parent) == 0
    listed = capsys.readouterr().out
    assert "transxnet_n" in listed
    (run_dir.parent / "other").mkdir()
    (run_dir.parent / "other/config.json").write_text('{"train": {}}')
    assert main(run_dir.parent) == 0
    assert capsys.readouterr().out == (
        f"{listed}{run_dir.parent}/other/config.json is not a configuration of this version: it has no model\n"
    )
    (run_dir / "checkpoints").mkdir()
    assert main(run_dir / "checkpoints") == 1
    assert main(runs=run_dir) == 1
    nothing, none = capsys.readouterr().err.splitlines()
    assert nothing.endswith("checkpoints is no run directory, for it has no config.json, and no runs are in it")
    assert none == f"status: no runs in {run_dir}: give a run directory or a folder of runs"


def test_watching_all_runs_ends_when_nothing_more_will_happen(run_dir, monkeypatch):
    monkeypatch.setattr("pipeline.status.command.WATCH_EVERY_S", 0.02)
    finished = run_dir.parent / "finished"
    shutil.copytree(run_dir, finished)
    event(finished, "start", 1, 0, step=0, world_size=1)
    event(finished, "end", 1, 9, outcome="finished")
    (run_dir / "submitit").mkdir()
    (run_dir / "submitit/submission.json").write_text('{"cluster": "local", "job_id": "1"}')
    # Submitted, and its processes still import.
    held = claim(run_dir / "submitit")
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(main, run_dir.parent, watch=True)
        with pytest.raises(TimeoutError):
            watching.result(0.5)
        event(run_dir, "start", 1, 0, step=0, world_size=1)
        # Killed with all that belonged to it.
        os.close(held)
        assert watching.result(30) == 0


def test_a_run_that_cannot_be_synced_does_not_stop_the_next(run_dir, monkeypatch, capsys):
    shutil.copytree(run_dir, run_dir.parent / "other")
    for folder in (run_dir, run_dir.parent / "other"):
        state = TrackingState(key="k", run_id="r", tracking_uri="http://127.0.0.1:9", status="FAILED")
        save_state(folder, state)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(run_dir.parent, sync=True) == 1
    said = capsys.readouterr().err
    assert said.count("is tracked in MLflow at http://127.0.0.1:9: set MLFLOW_TRACKING_URI") == 2


def test_a_reader_that_has_seen_enough_is_no_error(run_dir):
    command = [sys.executable, "-m", "pipeline.status", str(run_dir)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


@pytest.mark.parametrize("command", ["status", "register", "evaluate"])
def test_help_needs_nothing_heavy(command):
    program = (
        "import sys, runpy\n"
        f"sys.argv = ['pipeline.{command}', '--help']\n"
        f"try: runpy.run_module('pipeline.{command}', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'mlflow', 'pyarrow', 'numpy', 'matplotlib', 'deepspeed', 'submitit'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True, capture_output=True)
