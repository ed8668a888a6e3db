"""When the batch script requeues a job whose srun has failed."""

import pytest

from jobs import attempt_log
from jobs.lost_ranks import only_lost_ranks
from tests.jobs.support import GLOO, HEAD, write_rank_error

ENVIRONMENT = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(
    ("events", "traceback", "requeued"),
    [
        ([], "", False),
        ([("start", "")], "", True),
        ([("start", "")], GLOO, True),
        ([("start", ""), ("end", "peer lost")], GLOO, True),
        ([("start", "")], HEAD + "KeyError: 1", False),
        ([("start", ""), ("end", "failed")], "", False),
        ([("start", ""), ("end", "cancelled")], "", False),
        ([("start", ""), ("end", "requeued")], "", False),
        ([("end", "given up")], "", False),
    ],
)
def test_only_an_attempt_that_started_and_lost_ranks_is_requeued(tmp_path, events, traceback, requeued):
    attempt_log.append(tmp_path, "start", job_id="7", restarts=0)
    for event, outcome in events:
        attempt_log.append(tmp_path, event, job_id="7", restarts=1, outcome=outcome)
    if traceback:
        write_rank_error(tmp_path, 0, traceback)
    assert only_lost_ranks(tmp_path, ENVIRONMENT) is requeued
