"""The flag that a stop signal sets, and that the task reads between two steps."""

import signal
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""Signals that ask a process to save and stop. Slurm announces a time limit with USR2 and a preemption with TERM."""


class StopFlag:
    """A flag set by stop signals. The handler does nothing else, because a collective must not run inside a handler.

    Attributes:
        received: the stop signals that have arrived, in order.
        previous: the handlers that `install` replaced.
    """

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self.previous: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Install the handlers, then unblock the stop signals. Works in the main thread only."""
        for number in STOP_SIGNALS:
            self.previous[number] = signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def restore(self) -> None:
        """Install the previous handlers again."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def block_signals(self) -> None:
        """Block the stop signals: one that arrives while the interpreter shuts down would fail the finished job."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number))

    def __call__(self) -> bool:
        """Whether this process has received a stop signal."""
        return bool(self.received)
