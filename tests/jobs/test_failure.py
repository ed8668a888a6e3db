"""Which error is reported as the reason of a failed job."""

import pytest

from jobs.failure import describe_failure, find_killed_process, is_peer_loss, last_error
from tests.jobs.support import GLOO, HEAD, NCCL, STORE, write_rank_error


@pytest.mark.parametrize("traceback", [GLOO, NCCL, STORE])
def test_a_ranks_own_error_is_reported_before_the_loss_of_a_peer(tmp_path, traceback):
    assert is_peer_loss(last_error(traceback))
    write_rank_error(tmp_path, 0, traceback)
    write_rank_error(tmp_path, 1, HEAD + "KeyError: 'label'")
    assert describe_failure(tmp_path, "7", 2).startswith("rank 1 failed: KeyError: 'label'\n")


def test_error_is_named_by_its_class_without_the_module():
    assert last_error("pipeline.data.damaged_samples.DamagedSampleError: sample 7") == "DamagedSampleError: sample 7"


def test_the_killed_process_is_the_first_of_the_newest_attempt(tmp_path):
    start = "submitit INFO (2026-01-01) - Starting with JobEnvironment(job_id=7)\n"
    killed = "srun: error: n2: task 1: Out Of Memory\nsrun: error: n1: task 0: Killed\n"
    log = tmp_path / "7_0_log.out"
    log.write_text(f"{start}srun: error: n1: task 0: Bus error\n{start}{killed}")
    assert find_killed_process(tmp_path, "7") == "task 1: Out Of Memory"
    log.write_text(f"{start}{killed}{start}step 5\n")
    assert not find_killed_process(tmp_path, "7")
    (tmp_path / "8_controller.log").write_text(
        "attempt 0: rank 0: killed by SIGBUS\nattempt 0: rank 1: exit status 1\n"
        "attempt 1: rank 0: exit status 1\nattempt 1: rank 1: killed by SIGKILL\n"
    )
    assert find_killed_process(tmp_path, "8") == "rank 1: killed by SIGKILL"
