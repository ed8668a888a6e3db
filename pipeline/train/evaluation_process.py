"""The process beside rank 0 that has checkpoints evaluated: `python -m …evaluation_process RUN_DIR CORES`.

It is a process of its own so that neither sbatch nor a cluster that does not answer delays a step. `FINISH` on its
stdin says that the training has ended: it sees to the rest and leaves. Where stdin ends without it, the training was
interrupted or killed, and its next attempt goes on. Where the training's allocation evaluates, this process and its
children may use all cores that the ranks of this node have together.
"""

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from pipeline.common.errors import one_line
from pipeline.common.processes import PREEMPTION_SIGNALS, package_environment, preemption_blocked
from pipeline.run.recorder import log

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
        if self._ended(finished=finished) == 0 or not finished:
            return
        log("warning: the process that has checkpoints evaluated has failed; rank 0 sees to what is left")
        from pipeline.train.evaluation_jobs import EvaluationJobs

        try:
            EvaluationJobs(self._run_dir, beside_training=True).finish()
        except Exception as error:
            # The rest of the training's end does not depend on it.
            log(f"warning: not every checkpoint is evaluated: {one_line(error)}")

    def _ended(self, *, finished: bool) -> int | None:
        """End the process; return its exit code, None if it was never started."""
        if self._process is None or self._process.stdin is None:
            return None
        try:
            if finished:
                self._process.stdin.write(FINISH)
            self._process.stdin.close()
        except OSError:
            pass
        try:
            return self._process.wait(None if finished else LEAVE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self._process = None


def main(run_dir: Path, cores: Collection[int]) -> None:
    """Look for awaiting checkpoints until stdin ends.

    Args:
        run_dir: of the run.
        cores: that this process and its children may use; empty: those that it has.
    """
    import signal

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
                jobs.finish()
            else:
                jobs.stop()
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(core) for core in sys.argv[2].split(",") if core])
