"""The process beside rank 0 that has checkpoints evaluated: `python -m …evaluation_process RUN_DIR CORES`.

It is a process of its own so that neither sbatch nor a cluster that does not answer delays a step. `FINISH` on its
stdin says that the training has ended: it sees to the rest and leaves. Where stdin ends without it, the training was
interrupted or killed, and its next attempt goes on. Where the training's allocation evaluates, this process and its
children may use all cores that the ranks of this node have together.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.common.errors import one_line
from pipeline.common.processes import PREEMPTION_SIGNALS, package_environment, preemption_blocked
from pipeline.run.recorder import log

if TYPE_CHECKING:
    from pipeline.train.evaluation_jobs import EvaluationJobs

_OF_TIME_LIMIT = {signal.SIGUSR1, signal.SIGUSR2}
"""Signals that announce the time limit of a job, and that no user's cancel sends."""
FINISH = b"finish\n"
LOOK_S = 2.0
"""Seconds between two looks at the checkpoints."""
LEAVE_S = 10.0
"""Seconds that the process gets to leave when the training was interrupted."""


class EvaluationProcess:
    """Rank 0's handle on the process; only `close` waits."""

    def __init__(self, run_dir: Path, cores: Collection[int] = ()) -> None:
        """Start the process; where that fails, the end of the training evaluates.

        Args:
            run_dir: of the run.
            cores: that it may use; by default those of this process.
        """
        self._run_dir, self._process = run_dir, None
        command = [sys.executable, "-m", __name__, str(run_dir), ",".join(map(str, sorted(cores)))]
        try:
            with preemption_blocked():
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, env=package_environment())
        except OSError as error:
            log(f"warning: no checkpoint is evaluated beside the training: {error}")

    def hasten(self) -> None:
        """Ask the process to leave, since the training is interrupted; `close` waits for it."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def close(self, *, finished: bool) -> None:
        """End the process: at the end of a finished training once it, or this one in its place, has seen to all."""
        if not finished:
            self._leave()
            return
        with _noted_signals() as received:
            if self._finished(received) == 0:
                return
            log("warning: the process that has checkpoints evaluated has failed; rank 0 sees to what is left")
            self._finish_here(received)

    def _finish_here(self, received: list[int]) -> None:
        """Do what the process should have done at the end of the training."""
        from pipeline.train.evaluation_jobs import EvaluationJobs

        try:
            _finish(EvaluationJobs(self._run_dir, beside_training=True), received)
        except Exception as error:
            # The rest of the training's end does not depend on it.
            log(f"warning: not every checkpoint is evaluated: {one_line(error)}")

    def _finished(self, received: list[int]) -> int | None:
        """Have the process see to the rest, and pass on a stop signal; return its exit code, None if there is none."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return None
        with contextlib.suppress(OSError):
            process.stdin.write(FINISH)
            process.stdin.close()
        passed_on = 0
        while process.poll() is None:
            for number in received[passed_on:]:
                process.send_signal(number)
                passed_on += 1
            time.sleep(0.2)
        return process.returncode

    def _leave(self) -> None:
        """Have the process leave, since the training was interrupted."""
        self.hasten()
        if self._process is not None:
            try:
                self._process.wait(LEAVE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """Note stop signals, which were ignored before, in a list, for as long as it takes. For the main thread."""
    received: list[int] = []
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in PREEMPTION_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finish(jobs: "EvaluationJobs", received: list[int]) -> None:
    """See to what is left after the training, until a stop signal arrives; a time limit leaves it to a job of its own.

    After other signals Slurm starts the job again, or its user wants no more of it.
    """
    jobs.finish(lambda: bool(received))
    if _OF_TIME_LIMIT & set(received):
        jobs.hand_over()


def main(run_dir: Path, cores: Collection[int]) -> None:
    """Look for awaiting checkpoints until stdin ends.

    Args:
        run_dir: of the run.
        cores: that this process and its children may use; empty: those that it has.
    """
    from pipeline.train.evaluation_jobs import EvaluationJobs

    # The scheduler signals every process of a job; rank 0 tells this one when it ends.
    for number in PREEMPTION_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PREEMPTION_SIGNALS)
    os.nice(10)
    if cores:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cores)
    jobs = EvaluationJobs(run_dir, beside_training=True)
    problem = ""
    while True:
        try:
            jobs.submit_if_due()
        except Exception as error:
            # A file system that fails for a moment must not end the evaluations of the whole attempt.
            former, problem = problem, one_line(error)
            if problem != former:
                log(f"warning: checkpoints cannot be evaluated now: {problem}")
        readable, _, _ = select.select([sys.stdin], [], [], LOOK_S)
        if readable:
            if os.read(sys.stdin.fileno(), len(FINISH)) == FINISH:
                with _noted_signals() as received:
                    _finish(jobs, received)
            else:
                jobs.stop()
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(core) for core in sys.argv[2].split(",") if core])
