"""An attempt whose place a newer one has taken ends, without a result and without a word to others."""

import subprocess
import sys
from pathlib import Path

import pytest

from jobs import attempt_log, lost_ranks
from jobs.superseded import newer_attempt
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
    assert (newer_attempt(tmp_path, job_id, 1) is not None) == is_newer


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
