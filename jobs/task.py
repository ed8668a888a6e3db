"""The two plain callables at which a job and the work it runs touch, and the words for how either ends."""

from collections.abc import Callable
from enum import Enum


class Outcome(Enum):
    """How a task, or the job around it, ended."""

    FINISHED = "finished"
    """The work is done."""
    INTERRUPTED = "interrupted"
    """Asked to stop, saved, and stopped; there is more to do."""
    FAILED = "failed"
    """The work cannot go on: repeating it would fail again."""
    CANCELLED = "cancelled"
    """A person ended the job."""
    DETACHED = "detached"
    """The launcher stopped watching; the job goes on."""


StopRequested = Callable[[], bool]
"""True once the process has been asked to stop. Costs nothing; only this process's view, so ranks must agree on it."""

Task = Callable[[StopRequested], Outcome]
"""What every process of a job runs. It returns INTERRUPTED only after *all* ranks have saved what they need.

A task may carry two more methods, both called on rank 0 alone:

- `progress() -> str`: where the work stands (for example the newest checkpoint's name), called before the task starts.
  A job whose attempts start from the same place too often is ended instead of requeued.
- `ended(outcome: Outcome) -> None`: what becomes of the job, called last: INTERRUPTED when it comes back by itself,
  CANCELLED when it does not, FAILED after an exception. The process may have seconds left.
"""
