"""The snapshot of a rank's GPU memory: when it is written, and what it shows on a GPU."""

import pickle
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from pipeline.common.errors import TrainingError
from pipeline.config.schema import DataConfig, TrainConfig
from pipeline.engine.distributed import World, leave_world
from pipeline.run import directory as run_directory
from pipeline.run.goodput import StartUp
from pipeline.train import attempt
from pipeline.train.memory_snapshot import STEPS, MemorySnapshot, NoSnapshot, open_memory_snapshot
from tests.support.ranks import run_ranks


class Log:
    """What the recorder was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, line: str) -> None:
        self.lines.append(line)


def test_it_needs_a_gpu(tmp_path: Path):
    world = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    with pytest.raises(TrainingError, match=r"--train\.memory-snapshot needs GPUs"):
        open_memory_snapshot(tmp_path, world, cast("Any", Log()), wanted=True)


def build_that_fails(world: World, run_dir: str) -> bool:
    """An attempt whose training cannot be built, as where memory runs out; returns whether the recording was closed."""
    leave_world()
    # The tracker's worker ends at once.
    sys.executable = "/bin/true"
    opened: list[Any] = []

    class Memory(NoSnapshot):
        def close(self) -> None:
            opened.append("closed")

    attempt.open_memory_snapshot = lambda *_, **__: Memory()
    with pytest.raises((ValueError, OSError)):
        attempt.Attempt(Path(run_dir), StartUp()).run(lambda: False)
    return opened == ["closed"]


@pytest.mark.thorough
def test_it_is_written_too_where_the_training_cannot_be_built(tmp_path: Path):
    run_directory.prepare(tmp_path / "run", TrainConfig(data=DataConfig(shards=str(tmp_path / "missing"))), {})
    assert run_ranks(build_that_fails, 1, str(tmp_path / "run")) == [True]


@pytest.mark.gpu
@pytest.mark.parametrize("steps", [STEPS, 1])
def test_it_names_the_line_that_allocated_also_of_an_attempt_that_ended_early(tmp_path: Path, steps: int):
    log = Log()
    snapshot = MemorySnapshot(tmp_path, 7, cast("Any", log))
    snapshot.start(40)
    for _ in range(steps):
        images = torch.zeros(1 << 20, device="cuda")
        snapshot.step()
    snapshot.close()
    [path] = (tmp_path / "profile").iterdir()
    assert path.name == f"memory_step_{40 + steps:08d}_rank_00007.pickle"
    assert str(path) in log.lines[0]
    content = pickle.loads(path.read_bytes())
    allocated = [event for trace in content["device_traces"] for event in trace if event["action"] == "alloc"]
    large = [event for event in allocated if event["size"] >= images.nbytes]
    assert len(large) == steps
    assert any(frame["filename"] == __file__ for frame in large[0]["frames"])
