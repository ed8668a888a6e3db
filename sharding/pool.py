"""Run jobs in worker processes that end when their parent ends, however it ends."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import resource
import signal
import struct
import sys
import tempfile
import threading
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

from sharding.console import print_status
from sharding.errors import ShardingError


class PoolJob(Protocol):
    """A job of a worker."""

    def describe(self, place: int) -> str:
        """Describe what the worker was reading at the place of its last `note_place`, -1 if there was none."""
        ...

    def isolate(self) -> Self | None:
        """The same job with each image in a process of its own (`sharding.isolation`); None if it is so already."""
        ...


Job = TypeVar("Job", bound=PoolJob)
Result = TypeVar("Result")

_CONTEXT = multiprocessing.get_context("forkserver")
# Signals with which a process ends itself after an error in C code.
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)
_NOTE = struct.Struct("=qq")  # number of the job, place in the job
_JOBS_AHEAD = 2  # per worker: no worker waits for a job, and the jobs of a large plan are not all in memory at once


@dataclass
class _Note:
    """Where a worker notes what it works on.

    Attributes:
        file: descriptor of its note; None in a process that is no worker.
        number: number of its job.
    """

    file: int | None = None
    number: int = -1


_note = _Note()


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
    with _ignored_interrupts():  # the fork server and its workers inherit this: Ctrl-C concerns their parent alone
        forkserver.ensure_running()


def note_place(place: int) -> None:
    """Note which part of its job this worker begins: if the worker dies, its parent says what it was working on.

    Args:
        place: a number that `describe` of `run_jobs` understands.
    """
    if _note.file is not None:
        with contextlib.suppress(OSError):  # on a full disk the message is less exact
            os.pwrite(_note.file, _NOTE.pack(_note.number, place), 0)


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    workers: int,
    *,
    own_process: bool = False,
) -> Iterator[Result]:
    """Apply a function to every job and yield the results as they become ready, in any order.

    A worker whose decoder crashes (a segmentation fault, heap corruption) takes down all workers. Their unfinished jobs
    begin anew, and the job of the dead worker in isolation.

    Args:
        function: a function that workers can import by name: its module is not the program's main module.
        jobs: the jobs; taken as workers become free.
        workers: number of processes; with 1 this process does the work.
        own_process: whether a single worker is a process too, so that a crash does not end this one.

    Raises:
        ShardingError: a worker was killed, or crashed in spite of the isolation. Exceptions of `function` propagate;
            jobs that have not begun are dropped.
    """
    if workers == 1 and not own_process:
        yield from map(function, jobs)
        return
    prepare_workers(function.__module__)
    coming, again = iter(jobs), deque[Job]()
    while True:
        with tempfile.TemporaryDirectory(prefix="sharding-workers-") as notes:
            pool = _Pool(function, workers, notes)
            try:
                yield from pool.results(itertools.chain(_drain(again), coming))
                return
            except BrokenProcessPool as error:
                done, unfinished = pool.recover(error)
                again.extend(unfinished)
            except BaseException:
                pool.terminate()
                raise
        yield from done


def _drain(jobs: deque[Job]) -> Iterator[Job]:
    while jobs:
        yield jobs.popleft()


class _Pool(Generic[Job, Result]):
    """Worker processes until the first of them dies."""

    def __init__(self, function: Callable[[Job], Result], workers: int, notes: str) -> None:
        """Prepare the workers, which start with the first jobs; they leave their notes in the folder `notes`."""
        self._function, self._ahead, self._notes = function, workers * _JOBS_AHEAD, notes
        initial = (dict(os.environ), _limits(), notes)
        self._pool = ProcessPoolExecutor(workers, mp_context=_CONTEXT, initializer=_start_worker, initargs=initial)
        self._pending: dict[Future[Result], int] = {}
        self._jobs: dict[int, Job] = {}
        self._workers: dict[int, BaseProcess] = {}

    def results(self, jobs: Iterator[Job]) -> Iterator[Result]:
        """Run the jobs and yield their results.

        Raises:
            BrokenProcessPool: a worker died.
        """
        for number, job in enumerate(jobs):
            self._jobs[number] = job
            with _without_main(), _delayed_interrupts():  # a worker that starts here is known afterwards
                self._pending[self._pool.submit(_run, self._function, number, job)] = number
                self._workers |= getattr(self._pool, "_processes", None) or {}
            if len(self._pending) >= self._ahead:
                yield from self._finished()
        while self._pending:
            yield from self._finished()
        self._pool.shutdown()

    def _finished(self) -> Iterator[Result]:
        """Wait until jobs have ended, and yield their results."""
        done, _ = wait(self._pending, return_when=FIRST_COMPLETED)
        for future in done:
            result = future.result()
            del self._jobs[self._pending.pop(future)]
            yield result

    def recover(self, error: BrokenProcessPool) -> tuple[list[Result], list[Job]]:
        """After the death of a worker: collect the results that are there, and the jobs that must begin anew.

        Raises:
            ShardingError: a worker was killed by something else than a crash, or the job cannot be isolated further.
        """
        self._pool.shutdown()
        done = []
        for future, number in list(self._pending.items()):
            if future.done() and not future.cancelled() and future.exception() is None:
                done.append(future.result())
                del self._jobs[number]
        isolated = 0
        for pid, worker in self._workers.items():
            if worker.exitcode in (None, 0, -signal.SIGTERM):  # the executor ended it when it noticed the death
                continue
            number, place = self._read_note(pid)
            what = f" while reading {self._jobs[number].describe(place)}" if number in self._jobs else ""
            code = -(worker.exitcode or 0)
            job = self._jobs[number].isolate() if code in _CRASHES and number in self._jobs else None
            if job is None:
                raise ShardingError(
                    f"a worker process was killed ({_describe_exit(code)}){what}: by the system when memory ran out, "
                    "or by a signal. Finished shards are kept: give the same command again, with fewer --workers if "
                    "memory is short."
                ) from error
            print_status(
                f"a worker process crashed ({_describe_exit(code)}){what}. Its shard begins anew, with each image in a "
                "process of its own."
            )
            self._jobs[number] = job
            isolated += 1
        if not isolated:
            raise ShardingError("the worker processes ended unexpectedly. Give the same command again.") from error
        return done, list(self._jobs.values())

    def _read_note(self, pid: int) -> tuple[int, int]:
        """Read the note of a worker: number of its job, and place in the job; (-1, -1) if it left none."""
        try:
            note = Path(self._notes, str(pid)).read_bytes()
        except OSError:
            note = b""
        return _NOTE.unpack(note) if len(note) == _NOTE.size else (-1, -1)

    def terminate(self) -> None:
        """Stop the workers at once: a shard that a worker was writing stays unpublished."""
        for worker in self._workers.values():
            worker.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _describe_exit(code: int) -> str:
    """Name a signal, or an exit code below 0."""
    return signal.Signals(code).name if code > 0 else f"exit code {-code}"


def _run(function: Callable[[Job], Result], number: int, job: Job) -> Result:
    """Run a job in a worker."""
    _note.number = number
    note_place(-1)
    return function(job)


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


@contextlib.contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C in this context, and in the processes that it starts. Only the main thread can do so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _delayed_interrupts() -> Iterator[None]:
    """Answer Ctrl-C at the end of this context: what happens in it happens as a whole."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    interrupted = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if interrupted.is_set():
        signal.raise_signal(signal.SIGINT)


def _limits() -> dict[int, int]:
    """The soft limits of this process, which the fork server has not if they were set after its start."""
    kinds = {value for name, value in vars(resource).items() if name.startswith("RLIMIT_")}
    return {kind: resource.getrlimit(kind)[0] for kind in kinds}


def _start_worker(environment: dict[str, str], limits: dict[int, int], notes: str) -> None:
    """Set up a worker: copy the parent's environment and limits, ignore Ctrl-C, and exit when the parent exits."""
    os.environ.clear()
    os.environ.update(environment)
    for kind, soft in limits.items():
        with contextlib.suppress(OSError, ValueError):  # a limit that only this parent may have
            resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))
    with contextlib.suppress(OSError):
        _note.file = os.open(f"{notes}/{os.getpid()}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program may have started the fork server without doing so
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker"

    def exit_with_parent() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()
