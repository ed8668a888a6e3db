"""The process beside rank 0 that copies a run to its mirror, started by `Mirror`.

It is a process of its own so that a store that hangs, its library's locks, and the hashing of large files never delay
the training. It finds what to copy in the run directory. Its one message is the end of its pipe: the attempt is over.
Then it copies what is left and ends; rank 0 kills it when the time is over. A copy that is cut off anywhere is not
chosen by any reader, and a later attempt makes it good.
"""

import contextlib
import dataclasses
import fcntl
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.common.errors import one_line
from pipeline.common.processes import become_helper
from pipeline.common.secrets import mask_secrets
from pipeline.mirror.copier import Copier, DamagedHereError, TakenOverError
from pipeline.mirror.place import MirrorError
from pipeline.run.mirror_files import MirrorProgress, MirrorTarget, read_progress, read_target, write_progress

LOCK_NAME = ".mirror.lock"
PAUSE_S = 5.0
"""Seconds between two looks at the run directory, and before the first retry."""
LONGEST_PAUSE_S = 60.0
"""Longest time between two retries while the store takes nothing, in seconds."""
LAST_PAUSE_S = 1.0
"""Seconds between two retries after the attempt has ended."""
LOCK_PAUSE_S, LOCK_QUIET_S, LOCK_PATIENCE_S = 0.5, 5.0, 30.0
"""Seconds between two tries to be the one process that copies a run, before the wait is logged, and at the longest."""


def main() -> None:
    """Copy until the pipe ends and everything is there: `become_helper` gives the run directory and the pipe."""
    run_dir, pipe = become_helper()
    os.nice(5)
    try:
        follow(Path(run_dir), _waiter(int(pipe)))
    except (OSError, ValueError) as error:
        _log(f"warning: {run_dir} is not mirrored: {one_line(error)}")
    sys.stderr.flush()
    # Threads of a library that still wait for a dead store must not delay the exit.
    os._exit(0)


def follow(run_dir: Path, is_over: Callable[[float], bool]) -> None:
    """Keep the mirror of a run up to date until the attempt is over and nothing is missing, or it is taken over.

    Args:
        run_dir: folder of the run, with its `mirror.json`.
        is_over: waits for so many seconds, less if the attempt ends meanwhile; returns whether it is over.
    """
    target = read_target(run_dir)
    if target is None:
        return
    with _alone(run_dir, is_over) as is_alone:
        if not is_alone:
            return
        report = _Report(run_dir, target)
        copier, pause, over = Copier(run_dir, target, report.lacks), PAUSE_S, is_over(0)
        while True:
            try:
                is_complete = copier.copy_next()
                report.works(copier.newest_step, is_complete=is_complete)
            except TakenOverError as error:
                _log(
                    f"warning: the mirror {copier.place.shown} was taken over by {error}; this run goes on, and copies "
                    "nothing there any more"
                )
                report.taken_over(str(error))
                return
            except DamagedHereError as error:
                _log(f"warning: not mirrored: {error}")
                continue
            except (OSError, MirrorError) as error:
                copier.forget()
                report.fails(one_line(error))
                if over:
                    time.sleep(LAST_PAUSE_S)
                over = over or is_over(pause)
                pause = min(LONGEST_PAUSE_S, 2 * pause)
                continue
            pause = PAUSE_S
            if not is_complete:
                over = over or is_over(0)
            elif over:
                return
            else:
                over = is_over(PAUSE_S)


def complete(run_dir: Path) -> str | None:
    """Bring the mirror of a run that is not being trained up to date; return a line on it, None without a mirror.

    Raises:
        MirrorError: the store does not take it.
    """
    target = read_target(run_dir)
    if target is None:
        return None
    deadline = time.monotonic() + LOCK_PATIENCE_S

    def is_over(seconds: float) -> bool:
        time.sleep(max(0.0, min(seconds, deadline - time.monotonic())))
        return time.monotonic() >= deadline

    with _alone(run_dir, is_over) as is_alone:
        if not is_alone:
            raise MirrorError(f"another process copies {run_dir} to its mirror: try again when it has ended")
        report = _Report(run_dir, target)
        copier = Copier(run_dir, target, report.lacks)
        is_complete = False
        while not is_complete:
            try:
                is_complete = copier.copy_next()
            except DamagedHereError as error:
                _log(f"warning: not mirrored: {error}")
            except TakenOverError as error:
                report.taken_over(str(error))
                return f"the mirror {copier.place.shown} was taken over by {error}: nothing is copied there"
            except OSError as error:
                raise MirrorError(f"the mirror {copier.place.shown} does not take it: {one_line(error)}") from error
        report.works(copier.newest_step, is_complete=True)
        step = "no checkpoint yet" if copier.newest_step is None else f"step {copier.newest_step}"
        what = f"all but {copier.num_damaged} checkpoints that are damaged here" if copier.num_damaged else "everything"
        return f"the mirror {copier.place.shown} has {what}: {step}"


class _Report:
    """Tells the log, once, that the mirror takes nothing or works again, and keeps its progress for the commands."""

    def __init__(self, run_dir: Path, target: MirrorTarget) -> None:
        self._run_dir, self._shown = run_dir, mask_secrets(target.location)
        self._progress = read_progress(run_dir)
        self._failing = False

    def lacks(self, step: int | None) -> None:
        """Keep that something is missing in the mirror: this process may be killed while it copies that."""
        if self._progress.is_complete:
            self._keep(dataclasses.replace(self._progress, step=step, is_complete=False))

    def works(self, step: int | None, *, is_complete: bool) -> None:
        """Keep that the store takes what is copied."""
        if self._failing:
            _log(f"the mirror {self._shown} works again")
        self._failing = False
        before = self._progress
        at = before.time if step == before.step else time.time()
        self._keep(MirrorProgress(step=step, time=at, is_complete=is_complete))

    def fails(self, problem: str) -> None:
        """Keep that the store takes nothing, and why."""
        if not self._failing:
            _log(
                f"warning: the mirror {self._shown} takes nothing ({problem}); the training goes on, and what is "
                "missing is copied when it works again"
            )
        self._failing = True
        since = self._progress.behind_since or time.time()
        self._keep(dataclasses.replace(self._progress, is_complete=False, behind_since=since, problem=problem))

    def taken_over(self, owner: str) -> None:
        """Keep that another run directory has the mirror now."""
        problem = f"taken over by {owner}"
        self._keep(dataclasses.replace(self._progress, taken_over=True, is_complete=False, problem=problem))

    def _keep(self, progress: MirrorProgress) -> None:
        if progress != self._progress:
            self._progress = progress
            # The disk may be full.
            with contextlib.suppress(OSError):
                write_progress(self._run_dir, progress)


@contextlib.contextmanager
def _alone(run_dir: Path, is_over: Callable[[float], bool]) -> Iterator[bool]:
    """Wait until no other process copies this run, and yield True; yield False if the attempt ends before.

    On a file system without locks, go on at once.
    """
    with open(run_dir / LOCK_NAME, "a", encoding="utf-8") as file:
        waited = 0.0
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if is_over(LOCK_PAUSE_S):
                    yield False
                    return
                if waited < LOCK_QUIET_S <= waited + LOCK_PAUSE_S:
                    _log(f"another process copies {run_dir} to its mirror; this attempt copies when that has ended")
                waited += LOCK_PAUSE_S
                continue
            except OSError:
                pass
            yield True
            return


def _waiter(pipe: int) -> Callable[[float], bool]:
    """Return a function that waits for some seconds, less if the pipe ends, and returns whether it has ended."""

    def is_over(seconds: float) -> bool:
        return bool(select.select([pipe], [], [], seconds)[0])

    return is_over


def _log(text: str) -> None:
    """Print a line to stderr, which is the training's."""
    with contextlib.suppress(OSError):
        print(mask_secrets(text), file=sys.stderr, flush=True)
