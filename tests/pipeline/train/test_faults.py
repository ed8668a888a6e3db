"""A short form of `python -m tests.benchmarks.faults`: a killed and resumed run equals the uninterrupted one."""

from pathlib import Path

import pytest

from tests.benchmarks.faults_bench import Bench
from tests.benchmarks.faults_kills import kills
from tests.benchmarks.faults_others import full_disk


@pytest.mark.parametrize("times", [1, pytest.param(3, marks=pytest.mark.thorough)])
def test_a_killed_run_equals_the_uninterrupted_one(times: int, tmp_path: Path):
    bench = Bench(tmp_path)
    kills(bench, times, steps=8 + 4 * times)
    assert sum(row.times for row in bench.rows) == times
    assert all(row.equal for row in bench.rows)


@pytest.mark.slow
def test_a_full_disk_gives_a_warning_and_the_save_is_retried(tmp_path: Path):
    bench = Bench(tmp_path)
    full_disk(bench)
    if not bench.rows:
        pytest.skip("only root may mount a small file system")
    assert bench.rows[0].equal
