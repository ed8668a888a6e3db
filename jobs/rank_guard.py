"""The guard of a rank under Slurm: a process that answers for the rank, and whose exit status is all that Slurm sees.

srun ends a step when one of its processes fails (`--kill-on-bad-exit`), which is right for a rank that died at work,
and wrong for a rank that had finished: rank 0 may still be telling the tracking server, or registering the model.
"""

import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

from jobs.log import log
from jobs.results import ended_well, remove_result
from jobs.stop_flag import STOP_SIGNALS

_PR_SET_PDEATHSIG = 1


def guard(folder: Path, job_id: str, rank: int) -> None:
    """Fork, and return in the child, which is the rank. This process waits for it, and ends as it has ended.

    If the rank's result is on disk by then, this process exits with 0 whatever the rank's process died of. The stop
    signals must be blocked, and the child handles them. Slurm signals both processes, but the child misses a signal
    that came before the fork, so the guard passes on what it receives. The child dies with its guard.

    Args:
        folder: folder of the job.
        job_id: the cluster's name for the job.
        rank: number of the process.
    """
    remove_result(folder, job_id, rank)
    sys.stdout.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        return
    for number in STOP_SIGNALS:
        signal.signal(number, lambda received, _: os.kill(child, received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    # Without reaping the child, so that its number stays its own while signals are passed on.
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 0 and ended_well(folder, job_id, rank):
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"left with exit status {status}"
        log(f"rank {rank} had ended well before it {how}")
        status = 0
    if status < 0:
        _die_of(-status)
    os._exit(status)


def _die_of(number: int) -> None:
    """End this process by a signal, so that srun reports the signal; without a second core dump."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
