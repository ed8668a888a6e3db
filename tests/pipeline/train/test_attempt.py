"""How an attempt ends with a hanging rank, under plain torchrun, and with a loss that is not finite."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.checks import check
from pipeline.config.schema import OptimizerConfig, ScheduleConfig
from pipeline.recipes.digits import demo
from pipeline.run import directory as run_directory
from pipeline.run.files import durable_step, read_events, read_metrics
from pipeline.weights.card import is_exported
from tests.support import REPOSITORY
from tests.support.attempts import FAILED, FINISHED, INTERRUPTED, RunningAttempt, finished_steps
from tests.support.ranks import free_port
from tests.support.small_shards import config, pack

pytestmark = pytest.mark.timeout(600)

STEPS = 6


def start(run_dir: Path, digits: Path, **changes: Any) -> "subprocess.Popen[str]":
    config = replace(demo(), data=replace(demo().data, shards=str(digits)), **changes)
    uri = f"sqlite:///{run_dir.parent}/mlflow.db"
    run_directory.prepare(run_dir, check(config, 2), {"tracking_uri": uri, "recipe": "demo"})
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    command += [str(free_port()), "-m", "pipeline.train", str(run_dir)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        command,
        cwd=run_dir.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def rank_process(parent: int, rank: int) -> int:
    """Process id of a rank below torchrun."""
    for children in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in children.read_text().split():
            if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{child}/environ").read_bytes():
                return int(child)
    raise AssertionError(f"no rank {rank} below {parent}")


@pytest.mark.slow
def test_a_hanging_rank_is_named_within_the_time_out(tmp_path: Path, digits: Path):
    run_dir = tmp_path / "run"
    process = start(run_dir, digits, collective_timeout_s=15.0)
    groups = [process.pid]
    try:
        limit = time.monotonic() + 300
        while len(read_metrics(run_dir)) < 5 and time.monotonic() < limit:
            time.sleep(0.2)
        groups.append(rank_process(process.pid, 1))  # torchrun gives each rank a group of its own
        os.kill(groups[1], signal.SIGSTOP)
        assert process.stdout is not None
        output = ""
        for line in process.stdout:
            output += line
            if "hangs or was lost" in line:
                break
    finally:
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        process.communicate()
    assert "rank 1 of 2 hangs or was lost" in output, output[-3000:]


def test_a_loss_that_is_not_finite_is_skipped_and_then_stops_the_run(tmp_path: Path):
    """Every batch after the first checkpoint diverges, so the limit of skipped batches is reached."""
    pack(tmp_path / "shards", (17, 12))
    pack(tmp_path / "shards", (8,), split="validation")
    diverging = config(
        tmp_path / "shards",
        tmp_path / "cache",
        steps=12,
        global_batch_size=8,
        precision="fp32",
        save_every_steps=1,
        on_non_finite="skip",
        max_skipped_batches=1,
        optimizer=OptimizerConfig(lr=1e18),
        schedule=ScheduleConfig(warmup_epochs=0.0),
    )
    run_dir = tmp_path / "run"
    run_directory.prepare(run_dir, check(diverging, 2), {"tracking_uri": "sqlite:///none.db"})
    with RunningAttempt(run_dir) as attempt:
        assert attempt.wait() == [FAILED, FAILED]
        output = attempt.output()
    assert "is not finite; samples of rank" in output, output[-3000:]
    assert "to skip this batch" in output
    assert "1 batches were skipped before" in output
    skipped = json.loads((run_dir / "skipped.json").read_text())
    assert len(skipped) == 1
    steps = [r["step"] for r in read_metrics(run_dir)]
    assert steps == sorted(set(steps))
    [back] = [event for event in read_events(run_dir) if event["event"] == "back"]
    assert back["step"] == skipped[0]


@pytest.mark.parametrize(
    ("moment", "finishes"),
    [
        # The network and the engine are built, and the first batch is being read.
        pytest.param(lambda run_dir: bool(read_events(run_dir)), False, marks=pytest.mark.thorough),
        # The last step, then the final evaluation, which the next attempt makes up for.
        pytest.param(lambda run_dir: finished_steps(run_dir) >= STEPS - 1, False, marks=pytest.mark.thorough),
        # The last checkpoint, then the export.
        pytest.param(lambda run_dir: finished_steps(run_dir) >= STEPS, True, marks=pytest.mark.slow),
        # The end of the attempt, with the registration.
        pytest.param(is_exported, True, marks=pytest.mark.thorough),
    ],
    ids=["first batch", "final evaluation", "export", "registration"],
)
def test_stop_request_at_each_phase_loses_nothing(tmp_path: Path, moment: Callable[[Path], bool], finishes: bool):
    pack(tmp_path / "shards", (24, 24))
    pack(tmp_path / "shards", (24,), split="validation")
    short = config(tmp_path / "shards", tmp_path / "cache", steps=STEPS, precision="fp32", save_every_steps=100)
    run_dir = tmp_path / "run"
    run_directory.prepare(run_dir, check(short, 2), {"tracking_uri": "sqlite:///none.db"})
    with RunningAttempt(run_dir) as attempt:
        limit = time.monotonic() + 120
        while not moment(run_dir):
            assert time.monotonic() < limit, attempt.output()[-3000:]
            time.sleep(0.001)
        attempt.signal(signal.SIGTERM)
        assert attempt.wait() == [FINISHED if finishes else INTERRUPTED] * 2, attempt.output()[-3000:]
    (end,) = [event for event in read_events(run_dir) if event["event"] == "end"]
    assert end["outcome"] == ("finished" if finishes else "interrupted")
    if not finishes:
        assert durable_step(run_dir) == finished_steps(run_dir) > 0
        with RunningAttempt(run_dir) as attempt:
            assert attempt.wait() == [FINISHED] * 2
    assert is_exported(run_dir)
    assert [record["step"] for record in read_metrics(run_dir)] == list(range(1, STEPS + 1))


@pytest.mark.thorough
def test_an_attempt_without_any_checkpoint_ends_and_keeps_the_records(tmp_path: Path):
    """A purge of scratch took the checkpoints; a requeued job has no launcher that would notice."""
    pack(tmp_path / "shards", (17, 12))
    pack(tmp_path / "shards", (8,), split="validation")
    short = config(tmp_path / "shards", tmp_path / "cache", steps=40, precision="fp32", save_every_steps=2)
    run_dir = tmp_path / "run"
    run_directory.prepare(run_dir, check(short, 1), {"tracking_uri": "sqlite:///none.db"})
    with RunningAttempt(run_dir, ranks=1) as attempt:
        attempt.until_step(5)
    shutil.rmtree(run_dir / "checkpoints")
    records = (run_dir / "metrics.jsonl").read_bytes()
    with RunningAttempt(run_dir, ranks=1) as attempt:
        assert attempt.wait() == [FAILED]
        assert "no checkpoint is left: put " in attempt.output()
        assert "--begin-again" in attempt.output()
    assert (run_dir / "metrics.jsonl").read_bytes() == records


@pytest.mark.thorough
def test_a_configuration_that_does_not_fit_the_ranks_is_one_line(tmp_path: Path):
    """Torchrun starts any number of ranks, and a file can be edited."""
    pack(tmp_path / "shards", (17, 12))
    pack(tmp_path / "shards", (8,), split="validation")
    run_dir = tmp_path / "run"
    run_directory.prepare(run_dir, config(tmp_path / "shards", tmp_path / "cache", steps=2, global_batch_size=7), {})
    command = [sys.executable, "-m", "pipeline.train", str(run_dir)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "error: global_batch_size 7 is not divisible by micro_batch_size 4 x world_size 1" in done.stderr
    assert "Traceback" not in done.stderr
