"""A short form of `python -m tests.benchmarks.faults`: a killed and resumed run equals the uninterrupted one."""

from pathlib import Path

import pytest

from tests.benchmarks.faults_bench import Bench
from tests.benchmarks.faults_kills import kills
from tests.benchmarks.faults_others import full_disk


def test_a_run_killed_repeatedly_equals_the_uninterrupted_one(tmp_path: Path):
    bench = Bench(tmp_path)
    kills(bench, 2, steps=12)
    assert sum(row.times for row in bench.rows) == 2
    assert all(row.equal for row in bench.rows)


@pytest.mark.slow
def test_a_full_disk_gives_a_warning_and_the_save_is_retried(tmp_path: Path):
    bench = Bench(tmp_path)
    full_disk(bench)
    if not bench.rows:
        pytest.skip("only root may mount a small file system")
    assert bench.rows[0].equal
