"""When the batch script requeues a job whose srun has failed, and when it takes the job for finished."""

import pytest

from jobs import attempt_log
from jobs.lost_ranks import has_ended_well, only_lost_ranks
from tests.jobs.support import GLOO, HEAD, write_rank_error, write_rank_result

ENVIRONMENT = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1", "SLURM_NTASKS": "2"}
FAILED, TERMINATED = 1, 128 + 15
"""Exit statuses of srun."""


@pytest.mark.parametrize(
    ("events", "traceback", "status", "requeued"),
    [
        ([], "", FAILED, False),
        ([], "", TERMINATED, True),
        ([("start", "")], "", FAILED, True),
        ([("start", "")], GLOO, FAILED, True),
        ([("start", ""), ("end", "peer lost")], GLOO, FAILED, True),
        ([("start", "")], HEAD + "KeyError: 1", FAILED, False),
        ([("start", ""), ("end", "failed")], "", TERMINATED, False),
        ([("start", ""), ("end", "cancelled")], "", TERMINATED, False),
        ([("start", ""), ("end", "requeued")], "", TERMINATED, True),
        ([("start", ""), ("end", "finished")], "", TERMINATED, True),
        ([("end", "given up")], "", FAILED, False),
    ],
)
def test_only_an_attempt_that_lost_ranks_is_requeued(tmp_path, events, traceback, status, requeued):
    attempt_log.append(tmp_path, "start", job_id="7", restarts=0)
    for event, outcome in events:
        attempt_log.append(tmp_path, event, job_id="7", restarts=1, outcome=outcome)
    if traceback:
        write_rank_error(tmp_path, 0, traceback)
    assert only_lost_ranks(tmp_path, ENVIRONMENT, status, 5) is requeued


def test_job_whose_ranks_die_before_the_start_of_each_attempt_is_not_requeued_for_ever(tmp_path):
    attempt_log.append(tmp_path, "start", job_id="7", restarts=0)
    answers = []
    for restarts in range(1, 5):
        environment = ENVIRONMENT | {"SLURM_RESTART_COUNT": str(restarts)}
        answers.append(only_lost_ranks(tmp_path, environment, TERMINATED, 3))
        attempt_log.append(tmp_path, "end", job_id="7", restarts=restarts, outcome="lost")
    assert answers == [True, True, True, False]


def test_job_whose_work_was_over_has_ended_well_but_not_by_the_results_of_another_attempt(tmp_path):
    def end(restarts: int, outcome: str) -> None:
        attempt_log.append(tmp_path, "end", job_id="7", restarts=restarts, outcome=outcome)

    write_rank_result(tmp_path, 0)
    end(0, "finished")
    assert not has_ended_well(tmp_path, ENVIRONMENT)
    end(1, "requeued")
    assert not has_ended_well(tmp_path, ENVIRONMENT)
    end(1, "finished")
    assert has_ended_well(tmp_path, ENVIRONMENT)
    end(1, "requeued")
    write_rank_result(tmp_path, 1)
    assert has_ended_well(tmp_path, ENVIRONMENT)
    write_rank_error(tmp_path, 1, HEAD + "KeyError: 1")
    assert not has_ended_well(tmp_path, ENVIRONMENT)
