"""How long this rank waits for the others: a stopwatch around the collectives of torch.

A rank waits for the others where it enters a collective before them, so the slowest rank is the one that waits least.
DeepSpeed, a synchronised BatchNorm and the training loop call the functions of `torch.distributed` by name; while the
stopwatch is installed, they call timed ones.
"""

import functools
import time
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

TIMED = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_gather_single",
    "all_reduce",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather_object",
    "reduce",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
)
"""The collectives of a training; a version of torch may lack some."""


class CollectiveTimer:
    """Adds up how long this rank has been held up by collectives, the transfer itself included.

    Collectives of CPU tensors hold up the process, and are timed by its clock. Those of GPU tensors hold up a stream,
    and are timed by events there, which are read once the GPU has passed them: nothing waits for the GPU on their
    account. What runs inside a recorded CUDA graph is not timed.

    Attributes:
        entered: number of collectives that this rank has entered so far.
    """

    def __init__(self) -> None:
        self.entered = 0
        self._seconds = 0.0
        self._is_inside = False
        self._functions: dict[str, Callable[..., Any]] = {}
        self._pending: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()
        self._spare: list[torch.cuda.Event] = []

    def __enter__(self) -> Self:
        """Install the stopwatch."""
        for name in TIMED:
            function = getattr(dist, name, None)
            if function is not None:
                self._functions[name] = function
                setattr(dist, name, self._timed(function))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give torch its own functions back."""
        for name, function in self._functions.items():
            setattr(dist, name, function)
        self._functions.clear()

    def take(self) -> float:
        """Return the seconds since the last call; those that a GPU has not passed yet count in a later call."""
        while self._pending and self._pending[0][1].query():
            began, ended = self._pending.popleft()
            self._seconds += began.elapsed_time(ended) / 1000
            self._spare += [began, ended]
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if torch.compiler.is_compiling() or self._is_inside:
                return function(*args, **kwargs)
            self.entered += 1
            on_gpu = _is_on_gpu((*args, *kwargs.values()))
            if kwargs.get("async_op"):
                return _TimedWork(function(*args, **kwargs), functools.partial(self._hold, on_gpu))
            return self._hold(on_gpu, lambda: function(*args, **kwargs))

        return timed

    def _hold(self, on_gpu: bool, action: Callable[[], Any]) -> Any:
        """Run an action that may wait for other ranks, and time it."""
        if on_gpu and torch.cuda.is_current_stream_capturing():
            return action()
        began = time.perf_counter()
        first = self._event() if on_gpu else None
        self._is_inside = True
        try:
            return action()
        finally:
            self._is_inside = False
            if first is None:
                self._seconds += time.perf_counter() - began
            else:
                self._pending.append((first, self._event()))

    def _event(self) -> torch.cuda.Event:
        """Return an event that is recorded on the current stream."""
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class _TimedWork:
    """The handle of a collective that runs in the background, whose `wait` is timed."""

    def __init__(self, work: Any, hold: Callable[[Callable[[], Any]], Any]) -> None:
        self._work, self._hold = work, hold

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for the collective."""
        return self._hold(lambda: self._work.wait(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def _is_on_gpu(values: Iterable[Any]) -> bool:
    """Whether a tensor among the arguments of a collective is on a GPU."""
    return any(
        value.is_cuda if isinstance(value, Tensor) else isinstance(value, list) and _is_on_gpu(value)
        for value in values
    )
