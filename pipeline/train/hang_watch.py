"""Names a rank that hangs while the others still wait for it, and writes where each rank is into its own log.

The collective of a rank that waits fails after the time-out, and NCCL may then end the process before anything is
said. A thread of each rank therefore looks earlier whether steps are finished. It is told of each step, and costs the
training nothing.
"""

import contextlib
import faulthandler
import json
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch.distributed as dist

from pipeline.engine.distributed import World
from pipeline.run.recorder import Recorder, log

PATIENCE = 0.5
"""Share of the time-out of a collective after which a rank that finishes no step says where it is."""
ANSWER = 0.3
"""Share of the time-out that the ranks then have at most to say so."""
_STDERR = 2


@dataclass(frozen=True, kw_only=True)
class Whereabouts:
    """Where a rank is that finishes no step."""

    entered: int
    """Number of collectives that it has entered."""
    waits: bool
    """Whether it waits in a collective."""
    place: str
    """The line of the program that it is at."""


def find_hanging(ranks: list[Whereabouts | None]) -> list[int]:
    """Return the ranks that keep the others waiting; empty if none can be told from the others.

    A rank that does not answer hangs. Otherwise it is one that has entered fewer collectives than the others, or one
    that waits in none while others do.

    Args:
        ranks: where each rank is; None: it does not answer.
    """
    silent = [rank for rank, where in enumerate(ranks) if where is None]
    known = [where for where in ranks if where is not None]
    if silent or not known:
        return silent
    last = min(where.entered for where in known)
    behind = [rank for rank, where in enumerate(known) if where.entered == last]
    if len(behind) < len(known):
        return behind
    at_work = [rank for rank, where in enumerate(known) if not where.waits]
    return at_work if len(at_work) < len(known) else []


class HangWatch:
    """Watches the steps of this rank from a thread, within a `with` block."""

    def __init__(
        self, world: World, recorder: Recorder, hosts: list[str], entered: Callable[[], int], timeout_s: float
    ) -> None:
        """Prepare to watch.

        Args:
            world: this process among the ranks.
            recorder: writes, on rank 0, which rank hangs.
            hosts: host of each rank.
            entered: returns the number of collectives that this rank has entered.
            timeout_s: time-out of a collective.
        """
        self._world, self._recorder, self._hosts, self._entered = world, recorder, hosts, entered
        self._timeout_s = timeout_s
        self._main = threading.get_ident()
        self._ended = threading.Event()
        self._beats = self._step = self._alarms = 0
        self._answers: dict[int, bytes] = {}
        """The answer of each rank that was read last, on rank 0."""
        self._thread = threading.Thread(target=self._watch, name="hang-watch", daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch; a training on one rank waits for no other, and is not watched."""
        if self._world.size > 1:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the watch."""
        self._ended.set()
        faulthandler.cancel_dump_traceback_later()

    def step(self, step: int) -> None:
        """Take note of a finished step."""
        self._step = step
        self._beats += 1

    def alive(self) -> None:
        """Take note that the rank gets on within a long piece of work, such as an evaluation."""
        self._beats += 1

    def _watch(self) -> None:
        patience, every = PATIENCE * self._timeout_s, self._timeout_s / 50
        seen, since, told = -1, time.monotonic(), False
        while not self._ended.wait(every):
            if self._beats != seen:
                if told:
                    log(f"rank {self._world.rank} goes on after {time.monotonic() - since:.0f} s")
                    self._recorder.event("hang_over", step=self._step)
                seen, since, told = self._beats, time.monotonic(), False
                # If a rank hangs in a way that stops its threads too, this writes the stack all the same.
                faulthandler.dump_traceback_later(patience + 4 * every, file=_STDERR)
            elif not told and time.monotonic() - since > patience:
                told = True
                self._alarms += 1
                faulthandler.cancel_dump_traceback_later()
                self._tell(seen, time.monotonic() - since)

    def _tell(self, beat: int, seconds: float) -> None:
        """Write the stacks of this rank's threads into its log, and let rank 0 know where it is."""
        frame = sys._current_frames().get(self._main)
        stack = traceback.extract_stack(frame) if frame is not None else traceback.StackSummary()
        where = Whereabouts(entered=self._entered(), waits=_is_in_collective(stack), place=_place(stack))
        log(f"rank {self._world.rank} has finished nothing for {seconds:.0f} s after step {self._step}; its threads:")
        with contextlib.suppress(OSError, ValueError):
            faulthandler.dump_traceback(file=_STDERR)
        # A store whose process is stopped keeps its caller waiting for ever.
        asking = threading.Thread(target=self._exchange, args=(beat, seconds, where), name="hang-report", daemon=True)
        asking.start()
        asking.join(ANSWER * self._timeout_s + 1)
        if asking.is_alive() and not self._world.is_main:
            log(f"rank {self._world.rank}: rank 0 on {self._hosts[0]} does not answer: it hangs, or its node is lost")

    def _exchange(self, beat: int, seconds: float, where: Whereabouts) -> None:
        with contextlib.suppress(RuntimeError):
            # The store of the process group may be waiting for something itself.
            store: Any = dist.distributed_c10d._get_default_store().clone()
            # Not two answers are equal: a step may have several alarms.
            answer = {"alarm": self._alarms, "step": self._step, **asdict(where)}
            store.set(f"hang/{self._world.rank}", json.dumps(answer))
            if not self._world.is_main:
                return
            answers = self._collect(store)
            if beat == self._beats and not self._ended.is_set():
                self._name(seconds, [_whereabouts(answers.get(rank)) for rank in range(self._world.size)])

    def _collect(self, store: Any) -> dict[int, bytes]:
        """Wait a while for the answers of all ranks to this alarm; return those that came, by rank.

        The last step of another rank may be one more or one less: ranks part after the step's last collective.
        """
        answers: dict[int, bytes] = {}
        deadline = time.monotonic() + ANSWER * self._timeout_s
        while True:
            for rank in range(self._world.size):
                if rank in answers or not store.check([f"hang/{rank}"]):
                    continue
                answer = store.get(f"hang/{rank}")
                if answer != self._answers.get(rank) and abs(json.loads(answer)["step"] - self._step) <= 1:
                    answers[rank] = answer
            if len(answers) == self._world.size or time.monotonic() > deadline:
                self._answers |= answers
                return answers
            time.sleep(self._timeout_s / 100)

    def _name(self, seconds: float, ranks: list[Whereabouts | None]) -> None:
        """Log and record, on rank 0, which ranks hang."""
        hanging = find_hanging(ranks)
        for rank in hanging:
            self._recorder.event("hang", step=self._step, rank=rank, host=self._hosts[rank], place=_of(ranks[rank]))
        names = "; ".join(f"rank {rank} on {self._hosts[rank]} ({_of(ranks[rank])})" for rank in hanging)
        who = f"the others wait for {names}" if hanging else "no rank can be told from the others"
        self._recorder.warn(
            f"no step is finished for {seconds:.0f} s after step {self._step}: {who}; the log of each rank shows its "
            f"stack, and the attempt ends after {self._timeout_s:.0f} s"
        )


def _whereabouts(answer: bytes | None) -> Whereabouts | None:
    if answer is None:
        return None
    fields = json.loads(answer)
    return Whereabouts(entered=fields["entered"], waits=fields["waits"], place=fields["place"])


def _of(where: Whereabouts | None) -> str:
    return "does not answer" if where is None else where.place


def _is_in_collective(stack: traceback.StackSummary) -> bool:
    return any(Path(frame.filename).name == "distributed_c10d.py" for frame in stack)


def _place(stack: traceback.StackSummary) -> str:
    """Return the innermost line of this project, and the function that it calls, of a stack."""
    if not stack:
        return "unknown"
    own = [frame for frame in stack if "/pipeline/" in frame.filename]
    frame, last = (own or stack)[-1], stack[-1]
    text = f"{'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno}"
    return text if last is frame else f"{text}, in {last.name}"
