"""Whether an interrupted job is requeued, decided from faked answers of Slurm."""

import signal

import pytest

from jobs.requeue import Decision, decide
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
    ],
)
def test_interrupted_slurm_job_is_requeued_unless_a_user_cancelled_it(fake_command, tmp_path, answer, expected):
    fake_command("scontrol", f"JobId=7 JobName=x {answer}")
    assert decide("slurm", tmp_path, PLACE, flag_with(signal.SIGTERM)) is expected


def test_interrupted_job_is_requeued_while_the_slurm_controller_is_down(fake_command, tmp_path):
    fake_command("scontrol", error="Unable to contact slurm controller (connect failure)", status=1)
    assert decide("slurm", tmp_path, PLACE, flag_with(signal.SIGTERM)) is Decision.REQUEUE


def test_job_with_a_failed_rank_is_not_requeued(fake_command, tmp_path):
    fake_command("scontrol", "JobState=RUNNING Restarts=1")
    write_rank_error(tmp_path, 1, HEAD + "ValueError: wrong")
    assert decide("slurm", tmp_path, PLACE, flag_with(signal.SIGTERM)) is Decision.FAILED


def test_local_job_is_requeued_after_usr2_but_not_after_term(tmp_path):
    assert decide("local", tmp_path, PLACE, flag_with(signal.SIGUSR2)) is Decision.REQUEUE
    assert decide("local", tmp_path, PLACE, flag_with(signal.SIGTERM)) is Decision.STOPPED
    assert decide("debug", tmp_path, PLACE, flag_with(signal.SIGUSR2)) is Decision.STOPPED
