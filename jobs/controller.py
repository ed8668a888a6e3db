"""The controller of a local job: `python -m jobs.controller FOLDER` starts the ranks, watches them, and restarts them.

Submitit's controller waits for all ranks even when one has died, and goes on when its launcher dies. This controller
ends the peers of a rank that died, since they would wait for it in a collective, and stops all ranks when the launcher
has died. A rank whose result is on disk has ended well, whatever its process died of, and its peers go on.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE, Controller

from jobs import attempt_log
from jobs.environment import free_port
from jobs.log import log
from jobs.results import ended_well, remove_result
from jobs.stop_flag import STOP_SIGNALS, stop_signals_blocked

POLL_S = 0.1
PEERS_S = float(os.environ.get("LOCAL_JOBS_PEERS_S") or 10.0)
"""Seconds the other ranks get to end by themselves after one rank has failed."""
STOP_S = 120.0
"""Seconds the ranks get to save after the controller has asked them to stop."""


class LocalController(Controller):
    """Starts the ranks of one job, restarts them when the job asks for a requeue, and ends only after all of them.

    Attributes:
        launcher_pid: process whose end stops the job, or 0.
        stopping: whether the job must not be restarted.
        kill_now: whether to kill the ranks without waiting for them to save.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pid = os.environ["JOBS_LOCAL_JOB_ID"]
        self.launcher_pid = int(os.environ["JOBS_LOCAL_PARENT"])
        self.stopping = False
        self.kill_now = False
        signal.signal(signal.SIGQUIT, self._stop_now)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._forward_signal)  # pyright: ignore[reportArgumentType]
        # The launcher started this process with the stop signals blocked.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _stop_now(self, *_: object) -> None:
        self.stopping = self.kill_now = True

    def _stop(self, *_: object) -> None:
        self.stopping = True
        self._forward_signal(signal.SIGTERM)

    def start_tasks(self) -> None:
        """Start the ranks, with the stop signals blocked until each rank can handle them."""
        for rank in range(self.ntasks):
            remove_result(self.folder, self.pid, rank)
        with stop_signals_blocked():
            super().start_tasks()

    def _codes(self) -> list[int | None]:
        """Exit status of each rank: 0 where its result is on disk, None while it runs."""
        codes = [task.poll() for task in self.tasks]
        return [0 if code and ended_well(self.folder, self.pid, rank) else code for rank, code in enumerate(codes)]

    def wait(self, freq: int = 0) -> Sequence[int | None]:
        """Watch the ranks until all have ended, or until those that are left must be killed.

        Args:
            freq: not used; part of Submitit's signature.

        Returns:
            Exit status of each rank; None for a rank that must be killed.
        """
        started = time.monotonic()
        announced = False
        deadline = float("inf")
        while True:
            codes = self._codes()
            now = time.monotonic()
            if all(code is not None for code in codes) or now >= deadline or self.kill_now:
                return codes
            if self.launcher_pid and os.getppid() != self.launcher_pid and not self.stopping:
                self._stop()
            if any(codes):
                deadline = min(deadline, now + PEERS_S)
            if self.stopping:
                deadline = min(deadline, now + STOP_S)
            if self.timeout_s and not announced and now - started >= self.timeout_s - self.signal_delay_s:
                announced = True
                deadline = min(deadline, now + self.signal_delay_s)
                self._forward_signal(signal.SIGUSR2)
            time.sleep(POLL_S)

    def run(self, max_retry: int = 0) -> None:
        """Run one attempt after the other; the job itself limits the attempts without progress.

        Args:
            max_retry: not used; part of Submitit's signature.
        """
        restarts = 0
        codes: Sequence[int | None] = []
        while True:
            if self.stopping:
                attempt_log.append(self.folder, "end", job_id=self.pid, restarts=restarts, outcome="stopped")
                break
            os.environ["JOBS_LOCAL_RESTARTS"] = str(restarts)
            os.environ["JOBS_LOCAL_PORT"] = str(free_port())
            try:
                self.start_tasks()
                if self.stopping:
                    # The request came when there was no rank yet to pass it on to.
                    self._forward_signal(signal.SIGTERM)
                codes = self.wait()
                reported = [task.poll() for task in self.tasks]
            finally:
                self.kill_tasks()
            for rank, (code, seen) in enumerate(zip(codes, reported, strict=True)):
                well = "ended well, and then " if code == 0 and seen else ""
                log(f"attempt {restarts}: rank {rank}: {well}{_describe_exit(seen)}")
            if LOCAL_REQUEUE_RETURN_CODE not in codes:
                break
            codes = []
            restarts += 1
        sys.exit(0 if not any(codes) else 1)


def _describe_exit(code: int | None) -> str:
    """An exit status in words; `failure.find_killed_process` searches the log for them."""
    if code is None:
        return "did not end, so it was killed"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def main(arguments: Sequence[str]) -> None:
    """Run the job that the launcher's environment variables describe."""
    LocalController(Path(arguments[0])).run()


if __name__ == "__main__":
    main(sys.argv[1:])
