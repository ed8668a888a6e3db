"""The snapshot of a rank's GPU memory: when it is written, and what it shows on a GPU."""

import pickle
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from pipeline.common.errors import TrainingError
from pipeline.engine.distributed import World
from pipeline.train.memory_snapshot import STEPS, MemorySnapshot, open_memory_snapshot


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
