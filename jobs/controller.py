"""The local cluster's controller: `python -m jobs.controller FOLDER` starts the ranks of one job and ends with them.

Submitit's controller waits for all ranks whatever happens to one, and nobody watches it. This one ends the peers of a
rank that died, since they would wait for it in a collective, and stops the ranks when whoever started it is gone.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE, Controller

from jobs.environment import free_port

POLL_S = 0.1
PEERS_S = 10.0
"""Seconds the other ranks get to end by themselves after one has failed."""
STOP_S = 120.0
"""Seconds the ranks get to save after they were asked to stop."""


class LocalController(Controller):
    """Starts the ranks, restarts them when the job asks for it, and never leaves one behind."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.pid = os.environ["JOBS_LOCAL_JOB_ID"]
        self.watched = int(os.environ["JOBS_LOCAL_PARENT"])
        """Process whose end stops the job, or 0."""
        self.stopping = False
        self.at_once = False
        signal.signal(signal.SIGQUIT, self._end_now)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._stop)
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._forward_signal)  # pyright: ignore[reportArgumentType]

    def _end_now(self, *_: object) -> None:
        self.stopping = self.at_once = True

    def _stop(self, *_: object) -> None:
        self.stopping = True
        self._forward_signal(signal.SIGTERM)

    def wait(self, freq: int = 0) -> Sequence[int | None]:
        """Watch the ranks until all have ended, one has failed, or their time is over.

        Args:
            freq: not used; Submitit's signature.

        Returns:
            Exit status of each rank, None for one that must be killed.
        """
        started = time.monotonic()
        announced = False
        deadline = float("inf")
        while True:
            codes = [task.poll() for task in self.tasks]
            now = time.monotonic()
            if all(code is not None for code in codes) or now >= deadline or self.at_once:
                return codes
            if self.watched and os.getppid() != self.watched and not self.stopping:
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
        """Run attempt after attempt; the job itself bounds those that get nowhere.

        Args:
            max_retry: not used; Submitit's signature.
        """
        restarts = 0
        while True:
            os.environ["JOBS_LOCAL_RESTARTS"] = str(restarts)
            os.environ["JOBS_LOCAL_PORT"] = str(free_port())
            try:
                self.start_tasks()
                codes = self.wait()
            finally:
                self.kill_tasks()
            for rank, code in enumerate(codes):
                print(f"attempt {restarts}: rank {rank}: {_words(code)}", flush=True)
            if self.stopping or LOCAL_REQUEUE_RETURN_CODE not in codes:
                break
            restarts += 1
        sys.exit(0 if not any(codes) else 1)


def _words(code: int | None) -> str:
    """An exit status for people."""
    if code is None:
        return "did not end, so it was killed"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def main(arguments: Sequence[str]) -> None:
    """Run the job of which the launcher's variables tell."""
    LocalController(Path(arguments[0])).run()


if __name__ == "__main__":
    main(sys.argv[1:])
