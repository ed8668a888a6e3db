"""Whether an interrupted job is requeued, decided from faked answers of Slurm."""

import signal
import threading

import pytest

from jobs.errors import JobError
from jobs.requeue import Decision, decide, requeue_on_slurm
from jobs.stop_flag import StopFlag
from tests.jobs.support import HEAD, PLACE, write_rank_error


def flag_with(*signals: signal.Signals) -> StopFlag:
    flag = StopFlag()
    flag.received.extend(signals)
    return flag


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("JobState=RUNNING Reason=None Restarts=1", Decision.REQUEUE),
        ("JobState=COMPLETING Reason=None Restarts=1", Decision.CANCELLED),
        ("JobState=CANCELLED Reason=None Restarts=1", Decision.CANCELLED),
        ("JobState=COMPLETING Reason=TimeLimit Restarts=1", Decision.REQUEUE),
        ("JobState=COMPLETING Reason=None Restarts=2", Decision.ALREADY_REQUEUED),
        ("JobState=PENDING Reason=BeginTime Restarts=2", Decision.ALREADY_REQUEUED),
        ("JobState=FAILED Reason=NonZeroExitCode Restarts=1", Decision.CANCELLED),
    ],
)
def test_interrupted_slurm_job_is_requeued_unless_a_user_cancelled_it(fake_command, tmp_path, answer, expected):
    fake_command("scontrol", f"JobId=7 JobName=x {answer}")
    assert decide("slurm", tmp_path, PLACE, flag_with(signal.SIGTERM)) is expected


@pytest.mark.parametrize("state", ["COMPLETING", "PREEMPTED", "NODE_FAIL", "TIMEOUT", "CANCELLED"])
def test_a_job_of_a_chain_leaves_the_work_to_the_next_unless_it_is_surely_cancelled(fake_command, tmp_path, state):
    fake_command("scontrol", f"JobId=7 JobName=x JobState={state} Reason=None Restarts=1")
    expected = Decision.CANCELLED if state == "CANCELLED" else Decision.REQUEUE
    assert decide("slurm", tmp_path, PLACE, flag_with(signal.SIGTERM), is_chained=True) is expected


def test_no_answer_is_no_decision(fake_command, tmp_path, monkeypatch):
    fake_command("scontrol", error="Unable to contact slurm controller (connect failure)", status=1)
    answer = threading.Timer(1, fake_command, ("scontrol", "JobState=COMPLETING Reason=None Restarts=1"))
    answer.start()
    assert decide("slurm", tmp_path, PLACE, flag_with(signal.SIGTERM)) is Decision.CANCELLED
    answer.join()
    monkeypatch.setattr("jobs.requeue.PATIENCE_S", 0.0)
    fake_command("scontrol", error="Unable to contact slurm controller (connect failure)", status=1)
    with pytest.raises(JobError, match=r"Slurm does not say whether it was cancelled: .*Unable to contact"):
        decide("slurm", tmp_path, PLACE, flag_with(signal.SIGTERM))


def test_slurm_is_asked_before_every_requeue(tmp_path, monkeypatch):
    # The first requeue fails, and before the second one a user cancels the job.
    log = tmp_path / "asked"
    program = tmp_path / "scontrol"
    program.write_text(
        f"""#!/bin/sh
echo $1 >> {log}
[ $1 = requeue ] && {{ touch {tmp_path}/cancelled; echo "Unable to contact slurm controller" >&2; exit 1; }}
[ -e {tmp_path}/cancelled ] && echo JobState=COMPLETING Reason=None Restarts=1 || echo JobState=RUNNING Restarts=1
"""
    )
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert requeue_on_slurm("7", 1) is Decision.CANCELLED
    assert log.read_text().split() == ["show", "requeue", "show"]


def test_a_job_at_its_time_limit_is_requeued_plainly_and_a_refusal_is_repeated(tmp_path, monkeypatch):
    log = tmp_path / "asked"
    program = tmp_path / "scontrol"
    program.write_text(
        f"""#!/bin/sh
[ $1 = requeue ] && {{ echo "$@" >> {log}; exit 0; }}
[ $(wc -l < {log}) = 2 ] && echo JobState=COMPLETING Restarts=2 && exit
echo JobState=COMPLETING Reason=TimeLimit Restarts=1
"""
    )
    program.chmod(0o700)
    log.touch()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert requeue_on_slurm("7", 1) is Decision.REQUEUE
    assert log.read_text().splitlines() == ["requeue 7"] * 2


def test_job_with_a_failed_rank_is_not_requeued(fake_command, tmp_path):
    fake_command("scontrol", "JobState=RUNNING Restarts=1")
    write_rank_error(tmp_path, 1, HEAD + "ValueError: wrong")
    assert decide("slurm", tmp_path, PLACE, flag_with(signal.SIGTERM)) is Decision.FAILED


def test_local_job_is_requeued_after_usr2_but_not_after_term(tmp_path):
    assert decide("local", tmp_path, PLACE, flag_with(signal.SIGUSR2)) is Decision.REQUEUE
    assert decide("local", tmp_path, PLACE, flag_with(signal.SIGTERM)) is Decision.STOPPED
    assert decide("debug", tmp_path, PLACE, flag_with(signal.SIGUSR2)) is Decision.STOPPED
