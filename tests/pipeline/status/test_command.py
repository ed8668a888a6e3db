"""What the status command prints, watches and sends."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.folder_lock import lock_folder
from jobs.submission_file import Submitted, write_submission
from pipeline.common.cli import exit_status
from pipeline.run.status import read_status
from pipeline.status.command import main
from pipeline.status.show import format_run, format_table
from pipeline.tracking.client import open_client
from pipeline.tracking.shipper import Shipper
from pipeline.tracking.state import TrackingState, load_state, save_state
from tests.pipeline.tracking.runs import leave_to_next_job, new_run
from tests.support import REPOSITORY
from tests.support.tracking_runs import START, append_event, append_records, new_store


def json_train(run_dir: Path) -> dict:
    return json.loads((run_dir / "config.json").read_text())["train"]


def test_one_run_and_a_table_of_runs_are_printed(run_dir, capsys):
    append_records(run_dir, range(1, 11))
    status = read_status(run_dir)
    assert "10/100 (10 %)" in "\n".join(format_run(status, START))
    assert format_table([status], run_dir.parent)[1].split()[:4] == ["run", "transxnet_n", "submitted", "1"]
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
    assert exit_status(lambda: main(run_dir / "checkpoints")) == 1
    assert exit_status(lambda: main(runs=run_dir)) == 1
    nothing, none = capsys.readouterr().err.splitlines()
    assert nothing.endswith("checkpoints is no run directory, for it has no config.json, and no runs are in it")
    assert none == f"error: no runs in {run_dir}: give a run directory or a folder of runs"


def test_watching_ends_when_every_run_has_ended(run_dir, monkeypatch):
    monkeypatch.setattr("pipeline.status.command.WATCH_EVERY_S", 0.02)
    finished = run_dir.parent / "finished"
    shutil.copytree(run_dir, finished)
    append_event(finished, "start", 1, 0, step=0, world_size=1)
    append_event(finished, "end", 1, 9, outcome="finished")
    (run_dir / "submitit").mkdir()
    write_submission(run_dir / "submitit", Submitted(cluster="local", job_id="1", world_size=1, folder=run_dir))
    # The job is submitted, and its processes have not begun the attempt.
    held = lock_folder(run_dir / "submitit")
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(main, run_dir.parent, watch=True)
        with pytest.raises(TimeoutError):
            watching.result(0.5)
        append_event(run_dir, "start", 1, 0, step=0, world_size=1)
        # All processes of the job are killed.
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


@pytest.fixture
def slurm_says(tmp_path, monkeypatch):
    """A function that lets `scontrol show job` answer with fields of a job, or without any that it does not know it."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin/nowhere")

    def answer(fields: str) -> None:
        said = f"echo {fields}" if fields else "echo Invalid job id specified >&2; exit 1"
        (programs / "scontrol").write_text(f"#!/bin/sh\n{said}\n")
        (programs / "scontrol").chmod(0o700)

    return answer


@pytest.mark.thorough
def test_a_job_that_was_cancelled_while_it_waited_is_cancelled_here_and_in_mlflow(tmp_path, slurm_says, capsys):
    uri = new_store(tmp_path)
    run_dir, _ = new_run(tmp_path, uri)
    (run_dir / "submitit").mkdir()
    submission = {"cluster": "slurm", "job_id": "7", "world_size": 1, "folder": f"{run_dir}/submitit"}
    (run_dir / "submitit/submission.json").write_text(json.dumps(submission))
    slurm_says("JobState=PENDING Restarts=0")
    main(run_dir)
    assert "  state      submitted\n" in capsys.readouterr().out
    slurm_says("JobState=CANCELLED Restarts=0")
    main(run_dir)
    assert "  state      cancelled\n" in capsys.readouterr().out
    assert load_state(run_dir) is None, "a run that never started was made known to MLflow"
    # Slurm forgets the job.
    slurm_says("")
    main(run_dir)
    assert "  state      cancelled\n" in capsys.readouterr().out
    # The run is launched again, interrupted, and its job is requeued and cancelled before it starts.
    (run_dir / "submitit/submission.json").write_text(json.dumps(submission | {"job_id": "8"}))
    shipper = leave_to_next_job(run_dir)
    slurm_says("JobState=PENDING Restarts=1")
    main(run_dir)
    assert "  state      interrupted\n" in capsys.readouterr().out
    assert status_in_mlflow(uri, shipper) == "SCHEDULED"
    slurm_says("JobState=CANCELLED Restarts=1")
    main(run_dir)
    assert "  state      cancelled\n" in capsys.readouterr().out
    assert status_in_mlflow(uri, shipper) == "KILLED"
    # Without a look at it meanwhile, `--sync` finds it.
    shipper.end("SCHEDULED")
    shipper.send_status()
    main(tmp_path, sync=True)
    assert "status KILLED" in capsys.readouterr().out
    assert status_in_mlflow(uri, shipper) == "KILLED"


def status_in_mlflow(uri: str, shipper: Shipper) -> str:
    return open_client(uri).get_run(shipper.state.run_id).info.status


def test_a_closed_pipe_is_no_error(run_dir):
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


@pytest.mark.thorough
def test_a_run_is_shown_and_reported_where_the_environment_has_no_utf8(run_dir):
    folder = run_dir.rename(run_dir.parent / "Füße")
    append_records(folder, range(1, 3))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["command"] = "python -m pipeline.launch --registered-name Käfer"
    (folder / "config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    program = "import sys; from pipeline.common.cli import *; from pipeline.run.report import write_report\n"
    program += "write_report(Path(sys.argv[1])); sys.exit(run_main(load_main('pipeline.status.command'), 'status'))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", "from pathlib import Path\n" + program, str(folder)]
    shown = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert b"(transxnet_n)" in shown.stdout
    assert (folder / "report/report.md").read_text(encoding="utf-8").startswith("# Füße\n")
