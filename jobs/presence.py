"""Two launches must not train in one folder at once, and no rank may outlive its launcher for ever (this machine)."""

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

from jobs.errors import JobError

FILE = "alive.lock"
WAIT_S = 60.0
ORPHAN_S = 120.0
"""Seconds a rank gets to save after its controller has vanished."""


def claim(folder: Path, wait_s: float = WAIT_S) -> int:
    """Take the folder for one local job, waiting for the processes of a former one to end.

    Returns:
        A file descriptor that holds the claim; processes that inherit it keep the claim while they live.

    Raises:
        JobError: processes of another launch still run there.
    """
    descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                raise JobError(
                    f"processes of an earlier launch still work in {folder}; wait for them, stop them, "
                    "or choose another --run-dir"
                ) from None
            time.sleep(0.2)


def works_here(folder: Path) -> bool:
    """Whether processes of a local job work in a folder, as far as this machine knows; asks without writing."""
    try:
        with open(folder / FILE) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def share_claim(folder: Path) -> int:
    """Hold the claim in one more process: it stands until the last of them is gone."""
    descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def stop_when_orphaned(grace_s: float = ORPHAN_S) -> None:
    """Watch the parent process from a thread: when it is gone, ask this process to save and stop, then end it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()
