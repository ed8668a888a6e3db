"""A training that moves again and again, with nothing but the mirror in common, equals one that stayed."""

import contextlib
import dataclasses
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.mirror.claim import use_mirror
from pipeline.mirror.fetch import fetch_run
from pipeline.mirror.place import Place
from pipeline.mirror.worker import complete
from pipeline.run.files import durable_step
from pipeline.run.mirror_files import read_progress
from tests.benchmarks.faults_bench import Bench, finish, resumed_at
from tests.support.attempts import RunningAttempt, finished_steps
from tests.support.object_store import KEYS, FaultyProxy, place, s3_server


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
    # The last attempt has copied everything, the weights too, before it ended.
    assert read_progress(run) == dataclasses.replace(read_progress(run), step=steps, is_complete=True)
    fetch_run(location, tmp_path / "archive", take_over=False, say=said.append)
    assert (tmp_path / "archive" / "export" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["down", "full", "slow", "hangs"])
def test_a_bucket_that_fails_changes_nothing_of_a_training(fault: str, tmp_path: Path, monkeypatch):
    bench, steps = Bench(tmp_path), 30
    run = bench.prepare("run", steps)
    with contextlib.ExitStack() as stack:
        proxy = FaultyProxy(stack.enter_context(s3_server()))
        stack.callback(proxy.close)
        for name, value in {**KEYS, "AWS_MAX_ATTEMPTS": "2"}.items():
            monkeypatch.setenv(name, value)
        location = f"s3://bucket/run?{place(proxy.port)}"
        Place(location)._files.create_dir("bucket")
        use_mirror(run, location)
        proxy.faults = (507,) if fault == "full" else (503, 0)
        proxy.fail_every = int(fault in ("down", "full"))
        proxy.list_seconds = {"slow": 4.0, "hangs": 3600.0}.get(fault, 0.0)
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "pipeline.train"]
        done = subprocess.run([*command, str(run)], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        assert bench.equal(run, steps)
        said = done.stdout + done.stderr
        # A request to a bucket that hangs may outlast the training.
        assert said.count("takes nothing") in {"slow": (0,), "hangs": (0, 1)}.get(fault, (1,))
        # At its end a run waits a minute for the mirror at the longest, then says how to complete it.
        assert ("the mirror lacks something" in said) == (fault != "slow")
        proxy.fail_every, proxy.list_seconds = 0, 0.0
        line = complete(run)
        assert line is not None
        assert f"step {steps}" in line
