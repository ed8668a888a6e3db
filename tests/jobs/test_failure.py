"""Which error is reported as the reason of a failed job."""

import pytest

from jobs.failure import describe_failure, is_peer_loss, last_error
from tests.jobs.support import GLOO, HEAD, NCCL, STORE, write_rank_error


@pytest.mark.parametrize("traceback", [GLOO, NCCL, STORE])
def test_a_ranks_own_error_is_reported_before_the_loss_of_a_peer(tmp_path, traceback):
    assert is_peer_loss(last_error(traceback))
    write_rank_error(tmp_path, 0, traceback)
    write_rank_error(tmp_path, 1, HEAD + "KeyError: 'label'")
    assert describe_failure(tmp_path, "7", 2).startswith("rank 1 failed: KeyError: 'label'\n")


def test_error_is_named_by_its_class_without_the_module():
    assert last_error("pipeline.data.damaged_samples.DamagedSampleError: sample 7") == "DamagedSampleError: sample 7"
