"""A snapshot of the GPU memory of each rank: which line of the code has allocated what, over the first steps."""

import contextlib
from pathlib import Path

import torch

from pipeline.common.errors import TrainingError
from pipeline.engine.distributed import World
from pipeline.run.files import TRACES
from pipeline.run.recorder import Recorder

STEPS = 5
"""Steps of an attempt until the snapshot; memory that grows later is seen in `memory_mb` of the metrics."""
ENTRIES = 100_000
"""Events of the allocator that are kept, the newest ones."""
VIEWER = "https://pytorch.org/memory_viz"


class MemorySnapshot:
    """Records the allocations of one rank's GPU until its snapshot is written; `step` follows each finished step."""

    def __init__(self, run_dir: Path, rank: int, recorder: Recorder) -> None:
        """Begin to record; the snapshot will be `RUN_DIR/profile/memory_step_LAST_rank_RANK.pickle`.

        Args:
            run_dir: of the run.
            rank: this rank.
            recorder: logs where the snapshot is, on rank 0.
        """
        self._folder, self._rank, self._recorder = run_dir / TRACES, rank, recorder
        self._left, self._step = STEPS, 0
        torch.cuda.memory._record_memory_history(stacks="python", max_entries=ENTRIES)

    def start(self, step: int) -> None:
        """Note the step from which the attempt goes on."""
        self._step = step

    def step(self) -> None:
        """Count a finished step; after the last one, write the snapshot."""
        self._left, self._step = self._left - 1, self._step + 1
        if self._left == 0:
            self._write()

    def close(self) -> None:
        """Write the snapshot of an attempt that ends before, as one does that runs out of memory."""
        if self._left > 0:
            self._left = 0
            self._write()

    def _write(self) -> None:
        path = self._folder / f"memory_step_{self._step:08d}_rank_{self._rank:05d}.pickle"
        temporary = path.with_name(f".{path.name}")
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(temporary))
            temporary.replace(path)
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._recorder.warn(f"the snapshot of the GPU memory could not be written: {error}")
        else:
            self._recorder.log(f"snapshot of the GPU memory, one file for each rank: {path}; {VIEWER} shows it")
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)


class NoSnapshot:
    """Records nothing."""

    def start(self, step: int) -> None:
        """Do nothing."""

    def step(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def open_memory_snapshot(
    run_dir: Path, world: World, recorder: Recorder, *, wanted: bool
) -> MemorySnapshot | NoSnapshot:
    """Return a recording of this rank's GPU, or none where it is not wanted; arguments as of `MemorySnapshot`.

    Raises:
        TrainingError: it is wanted, and this training runs on CPUs.
    """
    if not wanted:
        return NoSnapshot()
    if world.device.type != "cuda":
        raise TrainingError("--train.memory-snapshot needs GPUs, and this training runs on CPUs: leave it out")
    return MemorySnapshot(run_dir, world.rank, recorder)
