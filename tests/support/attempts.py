"""Attempts at a run as a launcher starts them, in processes that a test can kill, stop and read.

The ranks are forked with everything imported, and MLflow is left out: importing it again and again would take longer
than all else. Everything else is the real thing: `TrainTask`, its locks, its process group, its files.
"""

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self
from unittest import mock

from pipeline.run.files import read_metrics
from tests.support.ranks import environment, forks, free_port

FINISHED, FAILED, INTERRUPTED = 0, 1, 3
"""Exit codes of a rank."""


def _rank(
    run_dir: Path,
    log: Path,
    rank: int,
    size: int,
    port: int,
    clock_speed: float,
    stop_at: int | None,
    before: Callable[[int], None] | None,
) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ |= environment(rank, size, port)
    # The tracker's worker ends at once, and the registration reports that it failed; a mirror's process is a real one.
    interpreter, sys.executable = sys.executable, "/bin/true"
    sys.modules["mlflow"] = None  # type: ignore[assignment]
    if clock_speed != 1.0:
        began, real = time.time(), time.time
        time.time = lambda: began + clock_speed * (real() - began)
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    looks = itertools.count(1)

    def stop_requested() -> bool:
        if next(looks) == stop_at and rank == size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return bool(stop)

    # A rank hangs at the line at which this reaches it.
    signal.signal(signal.SIGUSR1, lambda *_: time.sleep(3600))

    from jobs import Outcome
    from pipeline.common.errors import TrainingError
    from pipeline.common.processes import start_helper
    from pipeline.mirror import handle
    from pipeline.train.job_task import TrainTask

    def start_real_helper(module: str, arguments: list[str], descriptors: tuple[int, ...]):
        with mock.patch.object(sys, "executable", interpreter):
            return start_helper(module, arguments, descriptors)

    handle.start_helper = start_real_helper
    if before is not None:
        before(rank)
    task, outcome = TrainTask(run_dir), Outcome.FAILED
    try:
        outcome = task(stop_requested)
    except (TrainingError, ValueError, RuntimeError) as error:
        print(f"error: {error}", flush=True)
    finally:
        task.ended(outcome)
    sys.stdout.flush()
    os._exit({Outcome.FINISHED: FINISHED, Outcome.INTERRUPTED: INTERRUPTED}.get(outcome, FAILED))


class RunningAttempt:
    """A started attempt at the run in `run_dir`; leaving the `with` block kills it."""

    def __init__(
        self,
        run_dir: Path,
        *,
        log: Path | None = None,
        ranks: int = 2,
        clock_speed: float = 1.0,
        stop_at: int | None = None,
        before: Callable[[int], None] | None = None,
    ) -> None:
        """Start the ranks.

        Args:
            run_dir: of the run.
            log: file that gets what the ranks print.
            ranks: number of ranks.
            clock_speed: their `time.time` runs this many times as fast, backwards where it is negative.
            stop_at: the last rank gets a SIGTERM when it looks for this time whether it is asked to stop: once in each
                step, and once after each batch of an evaluation.
            before: called in each rank, with its number, before it begins.
        """
        context, port = forks(), free_port()
        self.run_dir = run_dir
        self.log = log or run_dir.parent / f"{run_dir.name}.{port}.log"
        settings = (ranks, port, clock_speed, stop_at, before)
        self.processes = [
            context.Process(target=_rank, args=(run_dir, self.log, rank, *settings), daemon=True)
            for rank in range(ranks)
        ]
        for process in self.processes:
            process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def signal(self, number: int, *ranks: int) -> None:
        """Send a signal to `ranks`, by default to all ranks."""
        for rank in ranks or range(len(self.processes)):
            process = self.processes[rank]
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, number)

    def kill(self, *ranks: int) -> None:
        """Kill `ranks` (by default all) with SIGKILL and wait for their end."""
        self.signal(signal.SIGKILL, *ranks)
        for rank in ranks or range(len(self.processes)):
            self.processes[rank].join()

    def wait(self, timeout_s: float = 400.0) -> list[int | None]:
        """Wait until all ranks have ended, and return their exit codes."""
        deadline = time.monotonic() + timeout_s
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self.processes]

    @property
    def over(self) -> bool:
        """Whether a rank has ended."""
        return any(process.exitcode is not None for process in self.processes)

    def until(self, condition: Callable[[], bool], timeout_s: float = 400.0, *, pause_s: float = 0.002) -> bool:
        """Poll `condition`; False if the attempt ended before it held.

        Args:
            condition: what is waited for.
            timeout_s: seconds after which the test fails.
            pause_s: between two looks. Each look takes processor time from the ranks.
        """
        deadline, looks = time.monotonic() + timeout_s, 0
        while not condition():
            looks += 1
            if looks % 100 == 0:
                if self.over:
                    return condition()
                assert time.monotonic() < deadline, f"the condition did not become true\n{self.output()[-3000:]}"
            time.sleep(pause_s)
        return True

    def until_step(self, step: int) -> bool:
        """Wait until `step` is recorded; False if the attempt ended before."""
        return self.until(lambda: finished_steps(self.run_dir) >= step)

    def output(self) -> str:
        """What the ranks have printed."""
        return self.log.read_text() if self.log.exists() else ""


def finished_steps(run_dir: Path) -> int:
    """The last step in a run's journal, 0 without one."""
    records = read_metrics(run_dir)
    return records[-1]["step"] if records else 0
