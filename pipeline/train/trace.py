"""A trace of some steps by torch's profiler: what each operator and kernel took, on every rank."""

import contextlib
from pathlib import Path

from torch import profiler

from pipeline.run.files import TRACES
from pipeline.run.recorder import Recorder

BEFORE = 10
"""Steps of an attempt before the trace: they allocate memory, choose algorithms and fill the queues."""
VIEWER = "https://ui.perfetto.dev"


class StepTrace:
    """Traces some steps of an attempt in one rank; `step` follows each finished step."""

    def __init__(self, run_dir: Path, rank: int, start_step: int, steps: int, recorder: Recorder) -> None:
        """Begin to count; the trace will be `RUN_DIR/profile/step_FIRST_rank_RANK.json.gz`.

        Args:
            run_dir: of the run.
            rank: this rank.
            start_step: finished steps at the start of the attempt.
            steps: how many steps are traced; an attempt that ends before traces fewer, or none.
            recorder: logs where the trace is, on rank 0.
        """
        self._first, self._recorder = start_step + BEFORE + 1, recorder
        self._path = run_dir / TRACES / f"step_{self._first:08d}_rank_{rank:05d}.json.gz"
        self._profiler = profiler.profile(
            activities=profiler.supported_activities(),
            schedule=profiler.schedule(wait=0, warmup=1, active=steps, skip_first=BEFORE - 1, repeat=1),
            on_trace_ready=self._write,
        )
        self._profiler.start()

    def step(self) -> None:
        """Count a finished step."""
        self._profiler.step()

    def close(self) -> None:
        """End the trace; steps that are traced already are written."""
        self._profiler.stop()

    def _write(self, traced: "profiler.profile") -> None:
        # The profiler compresses a file whose name ends with .gz.
        temporary = self._path.with_name(f".{self._path.name}")
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            traced.export_chrome_trace(str(temporary))
            temporary.replace(self._path)
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            self._recorder.warn(f"the trace from step {self._first} on could not be written: {error}")
        else:
            self._recorder.log(
                f"trace from step {self._first} on, one file for each rank: {self._path.parent}; {VIEWER} shows it"
            )


class NoTrace:
    """Traces nothing."""

    def step(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def open_trace(run_dir: Path, rank: int, start_step: int, steps: int, recorder: Recorder) -> StepTrace | NoTrace:
    """Return a trace of `steps` steps, or none if that is 0; arguments as of `StepTrace`."""
    return StepTrace(run_dir, rank, start_step, steps, recorder) if steps else NoTrace()
