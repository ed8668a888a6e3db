"""A training that moves again and again, with nothing but the mirror in common, equals one that stayed."""

import random
import shutil
import signal
from pathlib import Path

import pytest

from pipeline.mirror.claim import use_mirror
from pipeline.mirror.fetch import fetch_run
from pipeline.mirror.worker import complete
from pipeline.run.files import durable_step
from tests.benchmarks.faults_bench import Bench, finish, resumed_at
from tests.support.attempts import RunningAttempt, finished_steps


@pytest.mark.parametrize(
    "times", [pytest.param(1, marks=pytest.mark.thorough), pytest.param(10, marks=pytest.mark.slow)]
)
def test_a_run_that_is_handed_over_equals_the_uninterrupted_one(times: int, tmp_path: Path):
    bench, chance, location = Bench(tmp_path), random.Random(7), str(tmp_path / "mirror")
    steps = 8 + 4 * times
    run = bench.prepare("place-0", steps)
    use_mirror(run, location)
    for number in range(1, times + 1):
        with RunningAttempt(run) as attempt:
            first = resumed_at(run) if number > 1 else 0
            attempt.until(lambda run=run, first=first: durable_step(run) > first and finished_steps(run) > first + 3)
            if chance.random() < 0.5:
                attempt.kill()
            else:
                attempt.signal(signal.SIGTERM)
                attempt.wait()
        complete(run)
        elsewhere, said = tmp_path / f"place-{number}", []
        fetch_run(location, elsewhere, take_over=True, say=said.append)
        shutil.rmtree(run)
        run = elsewhere
    finish(run)
    assert bench.equal(run, steps)
    line = complete(run)
    assert line is not None
    assert f"step {steps}" in line
