"""Runs shard jobs in processes that end with their parent, whatever ends it."""

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
_JOBS_AHEAD = 2  # per worker: enough that none waits, few enough that the jobs of a large plan are not all in memory


def available_cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def prepare_workers(module: str) -> None:
    """Start, beside what this process does meanwhile, the process that workers are forked from.

    It imports what they need, once for all of them: a worker is then there in hundredths of a second instead of a
    second of processor time each. Without this call `run_jobs` does it.

    Args:
        module: of the function that will be given to `run_jobs`.
    """
    # pyarrow imports pandas, where there is one, when it first converts a list.
    _CONTEXT.set_forkserver_preload([module, "pandas"])
    forkserver.ensure_running()


def run_jobs(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """Apply a function to every job, in any order.

    Args:
        function: importable by name from a module that is not run as the program.
        jobs: consumed as workers become free.
        workers: processes; 1 works in this process.

    Raises:
        ShardingError: a worker was killed. Whatever `function` raises comes through; jobs not begun are then dropped.
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
        _end(pool)
        raise
    pool.shutdown()


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Start workers that do not import the program's main module.

    They need none of it, and a script without a `__name__` guard would start itself again in each of them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _end(pool: ProcessPoolExecutor) -> None:
    """Stop at once: what a worker was writing stays unpublished."""
    workers = list((getattr(pool, "_processes", None) or {}).values())
    for worker in workers:
        worker.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(environment: dict[str, str]) -> None:
    """Take over the parent's environment, leave Ctrl-C to it, and end when it does."""
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker"

    def end_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
