"""The flag that a stop signal sets, and that the task reads between two steps."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""Signals that ask a process to save and stop. Slurm announces a time limit with USR2 and a preemption with TERM."""


@contextlib.contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block the stop signals, also in processes started meanwhile: there a signal waits until it is unblocked."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class StopFlag:
    """A flag set by stop signals. The handler does nothing else, because a collective must not run inside a handler.

    Attributes:
        received: the stop signals that have arrived, in order; each once.
    """

    def __init__(self, *, restores: bool = False) -> None:
        """Prepare the flag; `install` must follow.

        Args:
            restores: whether `close` brings the previous handlers back, as a process that goes on needs them.
        """
        self.received: list[signal.Signals] = []
        self._restores = restores
        self._previous: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Install the handlers, then unblock the stop signals. Works in the main thread only."""
        for number in STOP_SIGNALS:
            self._previous[number] = signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def close(self) -> None:
        """End the flag, since the work has ended and nobody reads it any more. Works in the main thread only.

        The stop signals are ignored from now on, here and in the processes that are started later. If they were only
        blocked, they would still end the query to Slurm on which the end of the job depends, or a thread that does not
        have the mask.
        """
        for number, handler in self._previous.items():
            signal.signal(number, handler if self._restores else signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number not in self.received:
            self.received.append(signal.Signals(number))

    def __call__(self) -> bool:
        """Whether this process has received a stop signal."""
        return bool(self.received)
