"""Slow down processes: by a quota of the kernel's on their processor time, or else by stopping them again and again.

The quota holds whatever else the machine does. It needs root and a control group hierarchy, of either version.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.slurm.processes import kill

PERIOD_US = 20_000
"""Microseconds for which the kernel gives the quota of processor time."""
CYCLE_S = 0.06
"""How often processes without a quota are stopped and continued."""
SEARCH_EVERY_S = 1.0
_ROOTS = (Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup"))


@contextlib.contextmanager
def throttled(find: Callable[[], list[int]], factor: float) -> Iterator[None]:
    """Let processes have at most one part in `factor` of a processor's time within this block.

    Args:
        find: finds the processes; it is called again and again, since some start later.
        factor: by how much they become slower.
    """
    over = threading.Event()
    group = _new_group(factor)
    work = (lambda: _stop_and_go(find, factor, over)) if group is None else (lambda: _gather(find, group, over))
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if group is not None:
            _remove(group)


def _new_group(factor: float) -> Path | None:
    """A control group with the quota; None where none can be made."""
    quota = int(PERIOD_US / factor)
    for root in _ROOTS:
        group = root / f"rehearsal-{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            with contextlib.suppress(FileNotFoundError):
                # Without the file this is version 1.
                (group / "cpu.max").open("r+").close()
                (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")
                return group
            with contextlib.suppress(FileNotFoundError):
                (group / "cpu.cfs_quota_us").open("r+").close()
                (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
                (group / "cpu.cfs_quota_us").write_text(str(quota))
                return group
            group.rmdir()
    return None


def _gather(find: Callable[[], list[int]], group: Path, over: threading.Event) -> None:
    """Move the processes into the group until it is over."""
    while True:
        for pid in find():
            with contextlib.suppress(OSError):
                (group / "cgroup.procs").write_text(str(pid))
        if over.wait(SEARCH_EVERY_S):
            return


def _remove(group: Path) -> None:
    """Give the processes back to the group above, and remove the group."""
    deadline = time.monotonic() + 10
    while True:
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (group.parent / "cgroup.procs").write_text(pid)
        try:
            group.rmdir()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _stop_and_go(find: Callable[[], list[int]], factor: float, over: threading.Event) -> None:
    searched, own = 0.0, list[int]()
    while not over.is_set():
        if time.monotonic() - searched > SEARCH_EVERY_S:
            own = find()
            searched = time.monotonic()
        for pid in own:
            kill(pid, signal.SIGSTOP)
        time.sleep(CYCLE_S * (1 - 1 / factor))
        for pid in own:
            kill(pid, signal.SIGCONT)
        time.sleep(CYCLE_S / factor)
