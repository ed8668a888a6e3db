"""An attempt whose place a newer one has taken ends, without a result and without a word to others."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import attempt_log, lost_ranks
from jobs.superseded import CLOCKS_S, leave_if_superseded, newer_attempt, start_of_attempt
from tests.jobs.support import REPOSITORY


def start(folder: Path, job_id: str, restarts: int) -> None:
    attempt_log.append(folder, "start", job_id=job_id, restarts=restarts, host="n3")


@pytest.mark.parametrize(
    ("job_id", "started", "is_newer"),
    [
        ("7", [("7", 0), ("7", 1)], False),
        ("7", [("7", 1), ("7", 2)], True),
        ("7", [("6", 9), ("8", 0)], True),
        ("7", [("6", 9), ("10", 0)], True),
        # The elements of an array share the folder.
        ("7_1", [("7_1", 1), ("7_2", 5), ("8", 0)], False),
        ("7_1", [("7_1", 2)], True),
    ],
)
def test_a_newer_attempt_is_a_later_start_of_the_job_or_a_later_job_of_the_folder(tmp_path, job_id, started, is_newer):
    for name, restarts in started:
        start(tmp_path, name, restarts)
    assert (newer_attempt(tmp_path, job_id, 1, since=time.time() - 60) is not None) == is_newer


def log_start(folder: Path, job_id: str, restarts: int, time_s: float) -> None:
    attempt_log.append(folder, "start", job_id=job_id, restarts=restarts, time=time_s)


def test_an_older_attempt_with_a_higher_id_is_none_of_a_newer_cluster(tmp_path, monkeypatch, fake_command):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr("jobs.superseded.leave", lambda status: pytest.fail("the process left"))
    log_start(tmp_path, "9", 0, 1000.0)
    log_start(tmp_path, "7", 3, 1000.0)
    # Before and after rank 0 has written its start: this process goes on.
    leave_if_superseded(tmp_path, "7", 0)
    start(tmp_path, "7", 0)
    leave_if_superseded(tmp_path, "7", 0)
    fake_command("scontrol", "JobState=RUNNING Restarts=0")
    fake_command("scancel")
    asked: list[object] = []
    monkeypatch.setattr("jobs.chain.cancel", asked.append)
    attempt_log.append(tmp_path, "end", job_id="7", restarts=0, outcome="failed")
    assert lost_ranks.main([str(tmp_path), "1", "5"]) == 1
    assert asked == [()]


def test_start_of_an_attempt_is_that_of_the_log_unless_it_is_far_from_that_of_the_process():
    assert start_of_attempt(1003.0, process=1000.0) == 1003.0
    assert start_of_attempt(None, process=1000.0) == start_of_attempt(3.0, process=1000.0) == 1000.0 - CLOCKS_S
    # A node that has stood still writes its start late.
    assert start_of_attempt(5000.0, process=1000.0) == 1000.0 + CLOCKS_S


def test_a_process_ends_soon_after_a_newer_attempt_has_started(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from jobs import superseded; superseded.LOOK_EVERY_S = 0.1\n"
        "superseded.watch(Path(sys.argv[1]), '7', 0); print('watches', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "watches\n"
        start(tmp_path, "7", 1)
        output = process.stdout.read()
    assert process.returncode == 1
    assert "attempt 1 of job 7 goes on with the work on n3" in output


def test_the_batch_script_of_such_an_attempt_leaves_the_job_alone(tmp_path, monkeypatch, fake_command):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    fake_command("scontrol", "JobState=RUNNING Restarts=0")
    start(tmp_path, "7", 0)
    start(tmp_path, "7", 1)
    assert lost_ranks.main([str(tmp_path), "137", "5"]) == 137
    assert len(attempt_log.read(tmp_path, "7")) == 2
