"""The ends of a job on a real Slurm: what dies after its work is done, and stop requests at every moment.

Slurm leaves the processes of a cancelled job 5 s (`kill_wait_s`), and those of a preempted one 15 s (`grace_s`).
"""

import contextlib
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest

import jobs
from jobs import attempt_log
from jobs.environment import master_port
from jobs.rendezvous import rendezvous_ports
from tests.jobs.support import PLACE, REPOSITORY, starts, wait_until
from tests.jobs.tasks import Count
from tests.slurm.support import assert_over, preempt

pytestmark = pytest.mark.slurm

NEVER = 10_000


def submit(folder: Path, *, resources: dict | None = None, **changes) -> jobs.Submission:
    task = Count(folder=folder, **{"end": 5, "pause_s": 0.05, "save_every": NEVER, **changes})
    wanted = jobs.Resources(**{"nodes": 2, "timeout_min": 60, "partition": "low", **(resources or {})})
    return jobs.submit(
        task, cluster="slurm", folder=folder / "jobs", resources=wanted, name="count", code=jobs.Code(root=REPOSITORY)
    )


def told(folder: Path) -> list[str]:
    """The outcomes of which the task was told."""
    path = folder / "ended"
    return path.read_text().split() if path.exists() else []


def outcomes(folder: Path, job_id: str) -> list[str]:
    """The outcomes in the attempt log, oldest first."""
    return [event.outcome for event in attempt_log.read(folder / "jobs", job_id) if event.event == "end"]


def slow_python(folder: Path, rank: str) -> Path:
    """An interpreter that as that rank, in the first attempt, waits for two seconds before it starts."""
    program = folder / "python"
    program.write_text(
        f"""#!/bin/sh
[ -z "$SLURM_RESTART_COUNT" ] && case "$SLURM_PROCID" in {rank}) touch {folder}/waits$SLURM_PROCID; sleep 2;; esac
exec {sys.executable} "$@"
"""
    )
    program.chmod(0o700)
    return program


@pytest.mark.parametrize("crash", ["late", pytest.param("atexit", marks=pytest.mark.slow)])
@pytest.mark.parametrize("ended_s", [8, pytest.param(30, marks=pytest.mark.slow)])
def test_rank_that_aborts_after_its_end_does_not_end_rank_0(slurm, tmp_path, crash, ended_s):
    submission = submit(tmp_path, crash=crash, ended_s=ended_s)
    assert submission.wait(0.2) is jobs.Outcome.FINISHED
    assert submission.update().state == "COMPLETED"
    assert told(tmp_path) == ["FINISHED"]
    assert len(starts(tmp_path)) == 1
    if crash == "late":
        log = (tmp_path / "jobs" / f"{submission.job_id}_1_log.out").read_text()
        assert "rank 1 had ended well before it was killed by SIGABRT" in log


@pytest.mark.slow
@pytest.mark.parametrize("crash", ["late", "atexit"])
def test_preempted_job_comes_back_though_a_rank_aborts_before_rank_0_has_requeued_it(slurm, tmp_path, crash):
    submission = submit(tmp_path, crash=crash, end=40, ended_s=8)
    wait_until(lambda: starts(tmp_path, 1))
    preempt(slurm)
    assert submission.wait(0.2) is jobs.Outcome.FINISHED
    assert outcomes(tmp_path, submission.job_id) == ["requeued", "finished"]
    assert told(tmp_path) == ["INTERRUPTED", "FINISHED"]


def test_rank_0_that_is_lost_after_the_work_is_done_ends_its_work_in_another_attempt(slurm, tmp_path):
    submission = submit(tmp_path, ended_s=3)
    wait_until((tmp_path / "ending").exists)
    os.kill(starts(tmp_path)[0][1], signal.SIGKILL)
    assert submission.wait(0.2) is jobs.Outcome.FINISHED
    assert outcomes(tmp_path, submission.job_id) == ["finished", "lost", "finished"]
    assert told(tmp_path) == ["FINISHED"]


@pytest.mark.parametrize(
    "at", ["waits1", *(pytest.param(at, marks=pytest.mark.slow) for at in ("waits0", "import1", "begin1"))]
)
@pytest.mark.parametrize("event", ["preempted", "cancelled"])
def test_stop_request_while_the_job_starts(slurm, tmp_path, at, event):
    resources = {"python": str(slow_python(tmp_path, at[-1]))} if at.startswith("waits") else {}
    submission = submit(tmp_path, resources=resources, hold=at[:-1], end=40)
    wait_until((tmp_path / at).exists)
    if event == "preempted":
        preempt(slurm)
        assert submission.wait(0.2) is jobs.Outcome.FINISHED
        assert outcomes(tmp_path, submission.job_id)[-2:] == ["requeued", "finished"]
        assert told(tmp_path) == ["INTERRUPTED", "FINISHED"]
    else:
        submission.cancel()
        assert submission.wait(0.2) is jobs.Outcome.CANCELLED
        assert_over(slurm, submission, "CANCELLED")
        assert "FINISHED" not in told(tmp_path)


@pytest.mark.parametrize("moment", ["last", pytest.param("ending", marks=pytest.mark.thorough)])
def test_cancel_while_rank_0_ends_its_attempt_is_not_undone(slurm, tmp_path, monkeypatch, moment):
    # The job has decided to requeue itself, and a user cancels it before it does; at the last moment, after its last
    # question to Slurm.
    if moment == "last":
        program = tmp_path / "scontrol"
        program.write_text(
            f"""#!/bin/sh
[ "$1" = requeue ] && for last; do :; done && scancel "$last" && echo "$@" >> {tmp_path}/requeues
exec {shutil.which("scontrol")} "$@"
"""
        )
        program.chmod(0o700)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    submission = submit(tmp_path, end=NEVER, ended_s=0 if moment == "last" else 1.5)
    wait_until(lambda: starts(tmp_path, 1))
    slurm.run("scancel", "--signal=USR1", submission.job_id)
    wait_until((tmp_path / "ending").exists)
    if moment == "ending":
        submission.cancel()
    assert submission.wait(0.2) is jobs.Outcome.CANCELLED
    assert_over(slurm, submission, "CANCELLED")
    assert outcomes(tmp_path, submission.job_id) == ["requeued", "cancelled"]
    assert told(tmp_path) == ["INTERRUPTED", "CANCELLED"]
    assert (tmp_path / "requeues").exists() is (moment == "last")


@pytest.mark.parametrize("event", ["cancelled", pytest.param("preempted", marks=pytest.mark.slow)])
@pytest.mark.parametrize("at", ["ending", pytest.param("export1", marks=pytest.mark.slow)])
def test_stop_request_after_the_last_step_leaves_the_work_finished(slurm, tmp_path, event, at):
    submission = submit(tmp_path, hold="export", hold_s=2, ended_s=2)
    wait_until((tmp_path / at).exists)
    if event == "preempted":
        preempt(slurm)
    else:
        submission.cancel()
    assert submission.wait(0.2) is jobs.Outcome.FINISHED
    assert outcomes(tmp_path, submission.job_id) == ["finished"]
    assert told(tmp_path) == ["FINISHED"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "at", "outcome", "logged"),
    [
        ({"hold": "export", "hold_s": 30}, "export1", jobs.Outcome.CANCELLED, ["cancelled"]),
        ({"ended_s": 30}, "ending", jobs.Outcome.FINISHED, ["finished"]),
        ({"ended_s": 30, "end": NEVER}, "ending", jobs.Outcome.CANCELLED, ["requeued", "cancelled"]),
    ],
    ids=["export", "end", "requeue"],
)
def test_ranks_that_slurm_kills_after_a_cancel_leave_the_job_as_its_work_was(
    slurm, tmp_path, changes, at, outcome, logged
):
    # KillWait is over long before rank 0 has ended.
    submission = submit(tmp_path, **changes)
    if "requeued" in logged:
        wait_until(lambda: starts(tmp_path, 1))
        slurm.run("scancel", "--signal=USR1", submission.job_id)
    wait_until((tmp_path / at).exists)
    submission.cancel()
    assert submission.wait(0.2) is outcome
    assert_over(slurm, submission, "CANCELLED")
    assert outcomes(tmp_path, submission.job_id) == logged
    assert told(tmp_path) == []
    assert len(starts(tmp_path)) == 1


@pytest.mark.slow
def test_preemption_that_ends_before_rank_0_does_is_followed_by_another_attempt(slurm, tmp_path):
    # Slurm looks every 30 s whether a grace time is over, and then leaves the processes 5 s.
    slurm.run("scontrol", "update", "PartitionName=low", "GraceTime=2")
    submission = submit(tmp_path, ended_s=45)
    wait_until((tmp_path / "ending").exists)
    preempt(slurm)
    assert submission.wait(0.2) is jobs.Outcome.FINISHED
    assert outcomes(tmp_path, submission.job_id) == ["finished", "finished"]
    assert told(tmp_path) == ["FINISHED"]


def test_variables_reach_the_ranks_where_sbatch_passes_on_none(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    assert submit(tmp_path).wait(0.2) is jobs.Outcome.FINISHED


def test_ports_that_other_programs_use_do_not_end_the_job(slurm, tmp_path):
    submission = submit(tmp_path, resources={"slurm": ("begin=now+2",)})
    with contextlib.ExitStack() as stack:
        port = master_port(f"{submission.job_id}.0")
        place = type(PLACE)(**{**vars(PLACE), "master_port": port})
        for taken in (port, rendezvous_ports(place)[0]):
            stack.enter_context(socket.create_server(("", taken)))
        assert submission.wait(0.2) is jobs.Outcome.FINISHED
    assert starts(tmp_path)[0][3] != port
