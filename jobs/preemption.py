"""The flag that a signal sets."""

import signal
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""What asks a process to save and stop. Slurm announces a time limit with USR2 and a preemption with TERM."""


class StopFlag:
    """Set by a signal, read by the task: a handler does nothing else, because collectives must not run inside one."""

    def __init__(self) -> None:
        self.received: list[signal.Signals] = []
        self.previous: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Listen, keeping the handlers that were there, and let through what was held back. Main thread only."""
        for number in STOP_SIGNALS:
            self.previous[number] = signal.signal(number, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def restore(self) -> None:
        """Put the former handlers back."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def close(self) -> None:
        """Let nothing through any more: an interpreter that shuts down would die of a signal, and its job with it."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(signal.Signals(number))

    def __call__(self) -> bool:
        """Whether this process has been asked to stop."""
        return bool(self.received)
