"""The ends of a job on the local cluster: what dies after its work is done, and stop requests at every moment."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import jobs
from tests.jobs.support import REPOSITORY, starts, wait_until
from tests.jobs.tasks import Count


def submit(folder: Path, *, resources: dict | None = None, **changes) -> jobs.Submission:
    return jobs.submit(
        Count(folder=folder, **{"end": 5, "pause_s": 0.02, "save_every": 1000, "hold_s": 1.0, **changes}),
        cluster="local",
        folder=folder / "jobs",
        resources=jobs.Resources(nodes=2, **(resources or {})),
        name="count",
        code=jobs.Code(root=REPOSITORY),
    )


def ends(folder: Path) -> list[str]:
    """The outcomes of which the task was told."""
    return (folder / "ended").read_text().split()


@pytest.mark.parametrize(
    ("crash", "ended_s"),
    [
        # The controller gives the peers of a failed rank ten seconds, here one.
        pytest.param("late", 3, marks=pytest.mark.thorough),
        pytest.param("late", 30, marks=pytest.mark.slow),
        pytest.param("atexit", 30, marks=pytest.mark.slow),
    ],
)
def test_rank_that_aborts_after_its_end_does_not_end_rank_0(tmp_path, crash, ended_s, monkeypatch):
    if ended_s == 3:
        monkeypatch.setenv("LOCAL_JOBS_PEERS_S", "1")
    submission = submit(tmp_path, crash=crash, ended_s=ended_s)
    assert submission.wait(0.05) is jobs.Outcome.FINISHED
    assert ends(tmp_path) == ["FINISHED"]
    assert submission.failure() == ""
    controller = (tmp_path / "jobs" / f"{submission.job_id}_controller.log").read_text()
    assert ("rank 1: ended well, and then killed by SIGABRT" in controller) is (crash == "late")


def test_process_leaves_without_teardown():
    for end, status in (("return 0", 0), ("return 3", 3), ("raise SystemExit", 0), ("sys.exit('no')", 1), ("1 / 0", 1)):
        program = f"""
import atexit, os, sys
from jobs import run_and_leave
atexit.register(os.abort)
def main():
    print("printed", end="")
    {end}
run_and_leave(main)
"""
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout) == (status, "printed"), end


def test_finished_job_stays_finished_when_its_controller_is_killed(tmp_path):
    submission = submit(tmp_path, ended_s=1)
    wait_until((tmp_path / "ending").exists)
    submission._process.kill()  # pyright: ignore[reportAttributeAccessIssue]
    assert submission.wait(0.05) is jobs.Outcome.FINISHED
    # Rank 0 goes on, since nothing that comes from outside ends it.
    wait_until((tmp_path / "ended").exists)


def test_job_that_is_stopped_before_its_controller_has_started_starts_no_rank(tmp_path):
    submission = submit(tmp_path)
    submission.cancel()
    assert submission.wait(0.05) is jobs.Outcome.INTERRUPTED
    assert not starts(tmp_path)
    assert submission.failure() == ""


POINTS = {
    "import1": {"hold": "import"},
    "begin1": {"hold": "begin"},
    "rank1": {"end": 10_000, "then": 5},
    "export1": {"hold": "export"},
    "ending": {"ended_s": 1.0},
}
"""What the task does at each point, by the name of the file that it writes there."""


EACH_POINT = ["begin1", *(pytest.param(point, marks=pytest.mark.thorough) for point in POINTS if point != "begin1")]


@pytest.mark.parametrize("point", EACH_POINT)
def test_stop_request_at_each_point(tmp_path, point):
    submission = submit(tmp_path, **POINTS[point])
    wait_until((tmp_path / point).exists)
    submission.cancel()
    is_done = point in ("export1", "ending")
    assert submission.wait(0.05) is (jobs.Outcome.FINISHED if is_done else jobs.Outcome.INTERRUPTED)
    assert ends(tmp_path) == ["FINISHED" if is_done else "CANCELLED"]
    assert len(starts(tmp_path)) == 1


@pytest.mark.parametrize("point", EACH_POINT)
def test_announced_end_at_each_point(tmp_path, point):
    submission = submit(tmp_path, **POINTS[point])
    wait_until((tmp_path / point).exists)
    # As before a time limit: the controller signals all ranks, and the job goes on in a second attempt.
    os.kill(submission._process.pid, signal.SIGUSR2)  # pyright: ignore[reportAttributeAccessIssue]
    assert submission.wait(0.05) is jobs.Outcome.FINISHED
    assert ends(tmp_path) == (["FINISHED"] if point in ("export1", "ending") else ["INTERRUPTED", "FINISHED"])
