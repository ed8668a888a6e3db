"""Rank 0's handle on the mirror of a run: a process copies, so that the training never waits."""

import contextlib
import dataclasses
import os
import subprocess
import time
from pathlib import Path
from typing import Self

from pipeline.common.processes import start_helper
from pipeline.run.mirror_files import INTERRUPTED_S, lacks_something, read_progress, read_target, write_progress
from pipeline.run.recorder import log

PATIENCE_S = {"finished": 60.0, "failed": 20.0, "cancelled": 15.0, "stopped": 15.0, "interrupted": INTERRUPTED_S}
"""How long the end of an attempt may take with the mirror's last copy, by its outcome.

An interrupted job must be requeued within its grace period, and its next attempt copies the rest. Slurm kills a
cancelled job after `KillWait`, 30 s by default."""
QUIET_S = 10.0
"""How long the end of an attempt waits for the mirror before it logs that it waits."""


class Mirror:
    """The process that mirrors an attempt; used on rank 0 alone. No method raises, and only `close` waits."""

    def __init__(self, run_dir: Path, worker: "subprocess.Popen[bytes] | None", pipe: int) -> None:
        self._run_dir, self._worker = run_dir, worker
        self._pipe: int | None = pipe

    @classmethod
    def start(cls, run_dir: Path) -> Self | None:
        """Start the process that mirrors a run; None if the run has no mirror."""
        if read_target(run_dir) is None:
            return None
        reading, writing = os.pipe()
        try:
            worker = start_helper("pipeline.mirror.worker", [str(run_dir.resolve()), str(reading)], (reading,))
        except OSError as error:
            log(f"warning: the mirror of this run could not be started ({error}); the training goes on without it")
            worker = None
        os.close(reading)
        return cls(run_dir, worker, writing)

    @classmethod
    def complete(cls, run_dir: Path) -> None:
        """Let a process copy what a finished run has got since its training ended, such as its registration."""
        mirror = cls.start(run_dir)
        if mirror is not None:
            mirror.close("finished", time.monotonic())

    def hasten(self) -> None:
        """Let the process copy what is left at once, and end."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def close(self, outcome: str, began: float) -> None:
        """Let the process copy what is left, for some seconds, and end it.

        If a run that has ended is not complete in the mirror, the command that completes it is logged.

        Args:
            outcome: how the attempt ended (a value of `jobs.Outcome`).
            began: when its end began, in seconds of the monotonic clock; the patience counts from then.
        """
        self.hasten()
        if self._worker is None:
            return
        worker, self._worker = self._worker, None
        left_s = began + PATIENCE_S[outcome] - time.monotonic()
        ended = self._ends_within(worker, min(left_s, QUIET_S))
        if not ended and left_s > QUIET_S:
            log(f"waiting for the mirror to take the end of this run, {left_s - QUIET_S:.0f} s at the longest")
            ended = self._ends_within(worker, left_s - QUIET_S)
        if not ended:
            worker.kill()
            if not self._ends_within(worker, 1.0):  # it hangs in a disk that does not answer
                log("warning: the process that mirrors this run does not end; the attempt ends without it")
            self._note_missing()
        if outcome != "interrupted" and lacks_something(self._run_dir):
            log(
                "warning: the mirror lacks something of this run; when it works again: "
                f"python -m pipeline.status --sync {self._run_dir}"
            )

    def _note_missing(self) -> None:
        """Keep that something may be missing: the process was killed before it has seen that all is there."""
        progress = read_progress(self._run_dir)
        if progress.is_complete:
            with contextlib.suppress(OSError):
                write_progress(self._run_dir, dataclasses.replace(progress, is_complete=False))

    @staticmethod
    def _ends_within(worker: "subprocess.Popen[bytes]", seconds: float) -> bool:
        try:
            worker.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return False
        return True
