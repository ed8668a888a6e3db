"""The interface between a job and the work that it runs: two callables and an outcome."""

from collections.abc import Callable
from enum import Enum


class Outcome(Enum):
    """How a task, or the job that runs it, ended."""

    FINISHED = "finished"
    """The work is done."""
    INTERRUPTED = "interrupted"
    """The task was asked to stop, saved, and stopped; work is left."""
    FAILED = "failed"
    """The work cannot go on: the next attempt would fail in the same way."""
    CANCELLED = "cancelled"
    """A user cancelled the job."""
    STOPPED = "stopped"
    """The job was interrupted, and no job goes on with the work by itself: it was the last one of a chain."""
    DETACHED = "detached"
    """The launcher stopped following the job; the job goes on."""


StopRequested = Callable[[], bool]
"""Returns True once this process has been asked to stop. The call costs nothing.

Each rank sees only its own signals, so the ranks must agree on the answer.
"""

Task = Callable[[StopRequested], Outcome]
"""What every process of a job runs. It returns INTERRUPTED only after *all* ranks have saved their state.

A task whose attribute `takes_port` is true takes over the socket that holds `MASTER_PORT`, and listens on it: its
descriptor is in the variable `MASTER_SOCKET` of rank 0, and no other program can take the port before. The port of any
other task is free when the ranks meet, and the task opens it by itself.

A task may have two more methods. Both are called on rank 0 only:

- `progress() -> str`: where the work stands, such as the name of the newest checkpoint; called before the task starts.
  A job is ended instead of requeued when too many of its attempts start from the same progress.
- `ended(outcome: Outcome) -> None`: called last, with what happens to the job: INTERRUPTED when it is requeued,
  CANCELLED when it is not, STOPPED when it was the last one of a chain, FAILED after an exception. The process may have
  only seconds left.
"""
