"""Warnings where the notice before an end is shorter than a save takes."""

import json
from pathlib import Path

import pytest

from jobs import Notice
from pipeline.engine.distributed import World
from pipeline.run.recorder import Recorder
from pipeline.run.time_to_save import TimeToSave, describe_short_notices

WORDS = (
    "asked to stop, this run needs up to 42 s (a step of 2.0 s, the end of an evaluation of 1.0 s and a save of "
    "39.0 s), but "
)


def train(run_dir: Path, world: World) -> None:
    """Record four steps, an evaluation and two saves as the training loop does."""
    recorder = Recorder(run_dir, is_main=True, world_size=1)
    recorder.open(0)
    for step in range(1, 5):
        recorder.step({"step": step, "time": 0.0, "step_s": 2.0, "data_wait": 0.0})
    recorder.event("evaluate", step=4, seconds=3.0, end_s=1.0)
    # Of one that is interrupted the end is not measured.
    recorder.event("evaluate", step=4, seconds=0.5)
    for _ in range(2):
        recorder.event("saved", step=4, seconds=39.0)
    recorder.close()


@pytest.fixture
def world() -> World:
    import torch

    return World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))


def test_an_attempt_warns_once_of_each_notice_too_short_to_save(tmp_path, world, monkeypatch, capsys):
    known = [
        {"seconds": 30, "partition": ""},
        {"seconds": 15, "partition": "low"},
        {"seconds": 43, "partition": "high"},
    ]
    monkeypatch.setenv("JOB_NOTICES", json.dumps(known))
    train(tmp_path, world)
    said = capsys.readouterr()
    # Standard output and error of a rank go to one log.
    limit, preemption = [line for line in (said.out + said.err).splitlines() if "asked to stop" in line]
    assert WORDS + "the job is told of its time limit only 30 s before: set --signal-delay-s 90" in limit
    assert WORDS + "partition low gives 15 s at a preemption (GraceTime): ask for 90 s there" in preemption


def test_the_next_launch_reads_the_measured_times(tmp_path, world, monkeypatch):
    monkeypatch.delenv("JOB_NOTICES", raising=False)
    assert describe_short_notices(TimeToSave.of_run(tmp_path), [Notice(seconds=1)]) == []
    train(tmp_path, world)
    assert TimeToSave.of_run(tmp_path).seconds == pytest.approx(42.0)
    assert len(describe_short_notices(TimeToSave.of_run(tmp_path), [Notice(seconds=41), Notice(seconds=42)])) == 1
