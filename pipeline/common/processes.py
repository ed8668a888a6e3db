"""Helper processes of a rank: fresh interpreters that ignore preemption signals and die with the training.

A fresh interpreter without torch starts in a fifth of a second. Unlike a fork, it shares no locks, threads or CUDA
context with the training.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[2]
"""Folder of the packages that this process imports: a checkout, an installation, or a job's snapshot."""
PREEMPTION_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
"""Signals that a job's end sends to every process; the training handles them and ends its helpers itself."""
_PR_SET_PDEATHSIG = 1
_RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MLFLOW_RUN_ID")


def start_helper(module: str, arguments: list[str], descriptors: tuple[int, ...]) -> "subprocess.Popen[bytes]":
    """Start `main()` of a module in a fresh interpreter.

    Args:
        module: module whose `main` calls `become_helper` first.
        arguments: arguments that `become_helper` returns to it.
        descriptors: file descriptors that it inherits, under the same numbers.
    """
    with preemption_blocked():  # no signal ends the process before it ignores them
        return subprocess.Popen(
            [sys.executable, "-c", f"from {module} import main; main()", str(os.getpid()), *arguments],
            env=helper_environment(),
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
        )


def environment_without_rank() -> dict[str, str]:
    """Return this process's environment without the variables by which a library would take a helper for a rank."""
    return {name: value for name, value in os.environ.items() if name not in _RANK_VARIABLES}


ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
"""Variables with which each library computes in one thread."""


def package_environment() -> dict[str, str]:
    """Return the environment of a process that is no rank and imports this process's packages."""
    path = os.pathsep.join(filter(None, [str(PROJECT_ROOT), os.environ.get("PYTHONPATH")]))
    return {**environment_without_rank(), "PYTHONPATH": path}


def helper_environment() -> dict[str, str]:
    """Return the environment of a helper process: this process's packages, and one thread for each library."""
    return {**package_environment(), **ONE_THREAD}


@contextlib.contextmanager
def preemption_blocked() -> Iterator[None]:
    """Block preemption signals, also in the processes that are started meanwhile: only `kill -9` ends those."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, PREEMPTION_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def become_helper() -> list[str]:
    """Ignore preemption signals, die with the parent, and return the arguments given to `start_helper`."""
    for number in PREEMPTION_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PREEMPTION_SIGNALS)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(0)
    return sys.argv[2:]


def end_helper(process: "subprocess.Popen[bytes]", within_s: float = 5.0) -> None:
    """Wait for a helper whose socket was closed, and kill it after `within_s` seconds."""
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
