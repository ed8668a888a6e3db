"""The lock on a run's folder on this machine: two launches must not train in one folder at the same time."""

import fcntl
import os
import time
from pathlib import Path

from jobs.errors import JobError
from jobs.log import log

LOCK_FILE = "alive.lock"
WAIT_S = 60.0
"""Seconds a launch waits for the processes of a previous one to end."""
ANNOUNCED_S = 1.0
"""Seconds after which the wait is announced; a command that reads the status holds the lock for a moment too."""


def lock_folder(folder: Path, wait_s: float = WAIT_S) -> int:
    """Lock the folder for one local job, after waiting for the processes of a previous job to end.

    A wait is announced soon, with the launch that holds the lock.

    Args:
        folder: folder of the job; it must exist.
        wait_s: seconds to wait for the lock.

    Returns:
        A file descriptor that holds the lock. Each process that inherits it holds the lock until it ends.

    Raises:
        JobError: processes of another launch still run in the folder.
    """
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    began, is_announced = time.monotonic(), False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            waited = time.monotonic() - began
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "an unknown process"
            if waited >= wait_s:
                os.close(descriptor)
                raise JobError(
                    f"the processes of another launch ({holder}) still run in {folder}; wait until they end, stop "
                    "them, or choose another --run-dir"
                ) from None
            if waited >= ANNOUNCED_S and not is_announced:
                is_announced = True
                log(f"another launch ({holder}) works in {folder}: waiting up to {wait_s:.0f} s for its end")
            time.sleep(0.2)


def is_running_locally(folder: Path) -> bool:
    """Whether processes of a local job on this machine hold the folder's lock; writes nothing."""
    try:
        with open(folder / LOCK_FILE, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def share_lock(folder: Path) -> int:
    """Hold the folder's lock in this process too: the folder stays locked until the last such process has ended.

    Returns:
        The file descriptor that holds the lock.
    """
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor
