"""Chains of jobs, whose jobs Slurm may not requeue."""

import subprocess
import sys

import pytest

import jobs
from jobs import attempt_log
from jobs.slurm import ask, slurm_job
from jobs.submission import Submission
from pipeline.tracking.client import open_client
from pipeline.tracking.description import HINT_TAG
from tests.jobs.support import REPOSITORY, starts, wait_until
from tests.jobs.tasks import Count
from tests.slurm.runs import Run
from tests.slurm.support import preempt

pytestmark = pytest.mark.slurm


def submit(folder, *, length: int = 3, max_stalls: int = 5, python: str | None = None, **changes) -> Submission:
    resources = jobs.Resources(
        nodes=2, timeout_min=60, partition="low", chain=length, max_stalls=max_stalls, python=python
    )
    task = Count(folder=folder, **{"end": 60, "save_every": 10_000, **changes})
    code = jobs.Code(root=REPOSITORY)
    return jobs.submit(task, cluster="slurm", folder=folder / "jobs", resources=resources, name="count", code=code)


def outcomes(submission: Submission) -> list[str]:
    """How the attempts of the chain ended, oldest first."""
    events = attempt_log.read(submission.folder, *submission.job_ids)
    return [event.outcome for event in events if event.event == "end"]


def state_of(job_id: str) -> str:
    job = slurm_job(job_id)
    return "" if job is None else job.state


def assert_ended(submission: Submission, states: list[str]) -> None:
    """Assert that the jobs of the chain have ended in these states."""
    wait_until(lambda: [state_of(job_id) for job_id in submission.job_ids] == states)


@pytest.mark.parametrize("grace_s", [15, pytest.param(0, marks=pytest.mark.slow)])
def test_next_job_goes_on_after_a_preemption_and_the_rest_is_cancelled_at_the_end(slurm, tmp_path, grace_s):
    """Without a grace time the job is killed after `KillWait`, and looks until then as if a user had cancelled it."""
    slurm.run("scontrol", "update", "PartitionName=low", f"GraceTime={grace_s}")
    submission = submit(tmp_path)
    wait_until(lambda: len(starts(tmp_path, 1)) == 1)
    with pytest.raises(jobs.SlurmError, match="disabled"):
        ask("scontrol", "requeue", submission.job_id)
    preempt(slurm)
    attached = jobs.attach(tmp_path / "jobs")
    assert attached is not None
    updates: list[str] = []
    assert attached.wait(0.2, lambda update: updates.append(str(update))) is jobs.Outcome.FINISHED
    assert updates[0].endswith("as job 1 of 3")
    assert updates[-1].endswith("as job 2 of 3")
    assert outcomes(submission) == ["requeued", "finished"]
    assert (tmp_path / "step").read_text() == "60"
    assert_ended(submission, [state_of(submission.job_ids[0]), "COMPLETED", "CANCELLED"])


@pytest.mark.slow
@pytest.mark.parametrize("command", ["hold", "uhold"])
def test_a_job_that_is_held_keeps_its_place_until_it_is_released(slurm, tmp_path, command):
    slurm.run("scontrol", "update", "PartitionName=low", "GraceTime=15")
    submission = submit(tmp_path)
    wait_until(lambda: len(starts(tmp_path, 1)) == 1)
    slurm.run("scontrol", command, submission.job_ids[1])
    preempt(slurm)
    wait_until(lambda: "Held" in submission.poll()[0].reason)
    update, outcome = submission.poll()
    assert (outcome, update.part) == (None, "job 2 of 3")
    assert submit(tmp_path).job_ids == submission.job_ids
    slurm.run("scontrol", "release", submission.job_ids[1])
    assert submission.wait(0.2) is jobs.Outcome.FINISHED
    assert outcomes(submission) == ["requeued", "finished"]
    assert_ended(submission, [state_of(submission.job_ids[0]), "COMPLETED", "CANCELLED"])


@pytest.mark.thorough
def test_chain_whose_jobs_make_no_progress_is_given_up(slurm, tmp_path):
    submission = submit(tmp_path, length=4, max_stalls=2, kill_at=(1, 3), once=False)
    assert submission.wait(0.2) is jobs.Outcome.FAILED
    assert "2 attempts started at step 0 and made no progress" in submission.failure()
    assert outcomes(submission)[-1] == "given up"
    assert_ended(submission, ["FAILED", "FAILED", "FAILED", "CANCELLED"])


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_cancel_of_one_job_ends_the_chain(slurm, tmp_path, number):
    submission = submit(tmp_path, end=100)
    wait_until(lambda: len(starts(tmp_path, 1)) == 1)
    slurm.run("scancel", submission.job_ids[number])
    if number > 0:
        # No other job must start beside the first one.
        assert state_of(submission.job_ids[3 - number]) == "PENDING"
        slurm.run("scancel", "--signal=USR1", submission.job_ids[0])
    assert submission.wait(0.2) is jobs.Outcome.CANCELLED
    assert_ended(submission, [state_of(submission.job_ids[0]), "CANCELLED", "CANCELLED"])
    assert len(starts(tmp_path)) == 1
    assert 0 < int((tmp_path / "step").read_text()) < 100


@pytest.mark.slow
def test_chain_that_is_used_up_is_gone_on_with_by_the_same_launch(slurm, tmp_path):
    submission = submit(tmp_path, length=1)
    wait_until(lambda: len(starts(tmp_path, 1)) == 1)
    slurm.run("scancel", "--signal=USR1", submission.job_id)
    assert submission.wait(0.2) is jobs.Outcome.INTERRUPTED
    assert (tmp_path / "ended").read_text() == "STOPPED\n"
    assert str(submission.update()).endswith("(no job is left: launch again to go on) on n[1-2] as job 1 of 1")
    assert submit(tmp_path, length=2).wait(0.2) is jobs.Outcome.FINISHED
    assert len(starts(tmp_path)) == 2


@pytest.mark.slow
def test_error_ends_a_chain_whose_batch_script_cannot_see_it(slurm, tmp_path):
    """As where the ranks are in a container, and there is no Python outside: the next job sees it."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" = jobs.lost_ranks ] && exit 127\nexec {sys.executable} "$@"\n')
    python.chmod(0o700)
    submission = submit(tmp_path, raise_at=(1, 3), python=str(python))
    assert submission.wait(0.2) is jobs.Outcome.FAILED
    assert "rank 1 failed: step 3 cannot be done" in submission.failure()
    assert_ended(submission, ["FAILED", "FAILED", "CANCELLED"])
    assert len(starts(tmp_path)) == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_training_whose_chain_is_used_up_says_what_to_do_and_goes_on(slurm, tmp_path):
    run = Run(tmp_path, "run").launch("--chain", "1")
    run.wait_for_step(3)
    slurm.run("scancel", "--signal=USR1", run.job_id)
    output = run.finish()
    assert run.status == 1
    assert f"to go on, repeat the command with:\n    --run-dir {run.path}" in output
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    in_mlflow = open_client(uri).get_run(run.mlflow()["run_id"])
    assert in_mlflow.info.status == "KILLED"
    assert in_mlflow.data.tags[HINT_TAG] == f"launch again with --run-dir {run.path}: no job is left"
    status = [sys.executable, "-m", "pipeline.status", str(run.path)]
    shown = subprocess.run(status, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert "COMPLETED (no job is left: launch again to go on) on n[1-2] as job 1 of 1\n" in shown
    output = run.launch("--chain", "2").finish()
    assert run.status == 0, output
    run.assert_registered()
    assert HINT_TAG not in open_client(uri).get_run(run.mlflow()["run_id"]).data.tags
