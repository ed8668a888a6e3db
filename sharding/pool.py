"""Run jobs in worker processes that end when their parent ends, however it ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, forkserver
from typing import TypeVar

from sharding.errors import ShardingError

Job = TypeVar("Job")
Result = TypeVar("Result")

_CONTEXT = multiprocessing.get_context("forkserver")
_JOBS_AHEAD = 2  # per worker: no worker waits for a job, and the jobs of a large plan are not all in memory at once


def available_cpus() -> int:
    """Number of CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def worker_count(requested: int | None, jobs: int) -> int:
    """Number of workers for so many jobs: as requested, by default one per CPU; never more than there are jobs."""
    return max(1, min(requested or available_cpus(), jobs))


def prepare_workers(module: str) -> None:
    """Start the fork server in the background: the process from which the workers are forked.

    It imports what the workers need once, so that a worker starts in hundredths of a second instead of taking a second
    of CPU time. `run_jobs` starts the fork server if nobody has called this before.

    Args:
        module: name of the module of the function that `run_jobs` will get.
    """
    # pyarrow imports pandas, where it is installed, when it first converts a list.
    _CONTEXT.set_forkserver_preload([module, "pandas"])
    forkserver.ensure_running()


def run_jobs(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """Apply a function to every job and yield the results as they become ready, in any order.

    Args:
        function: a function that workers can import by name: its module is not the program's main module.
        jobs: the jobs; taken as workers become free.
        workers: number of processes; with 1 this process does the work.

    Raises:
        ShardingError: a worker was killed. Exceptions of `function` propagate; jobs that have not begun are dropped.
    """
    if workers == 1:
        yield from map(function, jobs)
        return
    prepare_workers(function.__module__)
    pool = ProcessPoolExecutor(workers, mp_context=_CONTEXT, initializer=_start_worker, initargs=(dict(os.environ),))
    pending: set[Future[Result]] = set()
    try:
        for job in jobs:
            with _without_main():
                pending.add(pool.submit(function, job))
            if len(pending) >= workers * _JOBS_AHEAD:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool as error:
        raise ShardingError(
            "a worker process was killed, by the system when memory ran out or by a signal. "
            "Finished shards are kept: give the same command again, with fewer --workers if memory is short."
        ) from error
    except BaseException:
        _terminate(pool)
        raise
    pool.shutdown()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep workers started in this context from importing the program's main module.

    They do not need it, and a script without a `__name__` guard would run again in each of them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _terminate(pool: ProcessPoolExecutor) -> None:
    """Stop the workers at once: a shard that a worker was writing stays unpublished."""
    workers = list((getattr(pool, "_processes", None) or {}).values())
    for worker in workers:
        worker.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(environment: dict[str, str]) -> None:
    """Set up a worker: copy the parent's environment, ignore Ctrl-C, and exit when the parent exits."""
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker"

    def exit_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
