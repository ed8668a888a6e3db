"""Slow ranks are named, and no others: `python -m tests.benchmarks.slow_ranks [--trials N] [--undisturbed N]`.

Two ranks of this machine take thousands of steps, each of a few milliseconds. In a step each rank waits for a batch of
a loader process of its own, multiplies matrices, and agrees on the step with the other as a training does, which splits
the time and judges the ranks (`pipeline.train.rank_times`). In each trial one rank, or its loader, is stopped and
continued many times a second, so that it gets a third of the time (its loader a thirtieth), until it is named; then it
is left alone until it is found to be well again. Undisturbed trials are stretches of a hundred steps in which nothing
is done.

`--cost` measures what all of it adds to a step instead.
`--training` makes the trials with the training of a small network instead, whose steps take ten times as long.
"""

import argparse
import contextlib
import multiprocessing
import os
import queue
import random
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import psutil
import torch

from pipeline.config.checks import check
from pipeline.engine.collectives import CollectiveTimer
from pipeline.engine.distributed import World, join_world, sum_over_ranks
from pipeline.run import directory as run_directory
from pipeline.run.files import read_events
from pipeline.run.recorder import Recorder
from pipeline.train.rank_times import RankTimes
from tests.support.attempts import RunningAttempt, finished_steps
from tests.support.ranks import environment, forks, free_port, run_ranks
from tests.support.small_shards import config, pack

PATIENCE = 4000
"""Steps after which a rank that is not named counts as missed."""
RANKS = 2
PART_S = 0.004
"""Seconds of a matrix product, and of a batch, in a step."""


def busy(seconds: float) -> float:
    """Repetitions of a matrix product in so many seconds, for `work`."""
    matrix, count, began = torch.ones(96, 96), 0, time.perf_counter()
    while time.perf_counter() - began < 1.0:
        matrix @ matrix
        count += 1
    return count * seconds


def work(repetitions: int) -> None:
    """A fixed amount of work."""
    matrix = torch.ones(96, 96)
    for _ in range(repetitions):
        matrix @ matrix


def loader(out: Any, repetitions: int) -> None:
    """Make batches ahead, each with some work, until the rank has ended."""
    parent = os.getppid()
    while os.getppid() == parent:
        work(repetitions)
        with contextlib.suppress(queue.Full):
            out.put(bytes(1000), timeout=5)


def rank_loop(run_dir: Path, rank: int, port: int, step: "Synchronized[int]", repetitions: int) -> None:
    """Take steps until the process is killed, or this program is."""
    parent = os.getppid()
    os.environ |= environment(rank, RANKS, port)
    world = join_world()
    recorder = Recorder(run_dir, is_main=world.is_main, world_size=RANKS)
    batches: Any = multiprocessing.Queue(maxsize=2)
    multiprocessing.Process(target=loader, args=(batches, repetitions // 2), name="loader", daemon=True).start()
    with CollectiveTimer() as timer:
        times = RankTimes(world, timer, recorder, 1.5)
        for number in range(1, 10**9):
            began = times.begin()
            batches.get()
            waited = time.monotonic() - began
            work(repetitions)
            _, *places = sum_over_ranks([0.0, *times.to_send(number)])
            times.end(time.monotonic() - began, waited)
            times.received(number, places)
            if world.is_main:
                step.value = number
            if os.getppid() != parent:
                os._exit(1)


@contextlib.contextmanager
def throttled(processes: list[psutil.Process], share: float, period_s: float) -> Iterator[None]:
    """Let processes run for a share of the time, `1 / period_s` times a second."""
    ended = threading.Event()

    def throttle() -> None:
        with contextlib.suppress(ProcessLookupError):
            while not ended.is_set():
                for process in processes:
                    os.kill(process.pid, signal.SIGSTOP)
                time.sleep(period_s * (1 - share))
                for process in processes:
                    os.kill(process.pid, signal.SIGCONT)
                time.sleep(period_s * share)

    thread = threading.Thread(target=throttle, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def changes(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    """The events of a kind so far."""
    return [event for event in read_events(run_dir) if event["event"] == kind]


class Trials:
    """Ranks that take steps while they are throttled, one after the other."""

    def __init__(self, run_dir: Path, processes: list[Any], steps: Callable[[], int], loader_name: str) -> None:
        self.run_dir, self.processes, self.steps, self.loader_name = run_dir, processes, steps, loader_name
        self.false: list[dict[str, Any]] = []
        self._seen = 0

    def _new(self) -> list[dict[str, Any]]:
        named = changes(self.run_dir, "slow_rank")
        new, self._seen = named[self._seen :], len(named)
        return new

    def wait(self, steps: int, kind: str | None = None) -> None:
        """Wait for so many steps, or until there is a new event of a kind."""
        end = self.steps() + steps
        before = len(changes(self.run_dir, kind)) if kind else 0
        while self.steps() < end:
            assert all(process.is_alive() for process in self.processes)
            if kind and len(changes(self.run_dir, kind)) > before:
                return
            time.sleep(0.02)

    def throttle(self, rank: int, part: str, share: float, period_s: float) -> int | None:
        """Throttle a rank or its loader; return the steps until it was named rightly, or None."""
        process = psutil.Process(self.processes[rank].pid)
        loaders = [each for each in process.children(recursive=True) if self.loader_name in " ".join(each.cmdline())]
        first = self.steps()
        with throttled(loaders if part == "data" else [process], share, period_s):
            self.wait(PATIENCE, "slow_rank")
        new = self._new()
        right = [event for event in new if (event["rank"], event["part"]) == (rank, part)]
        self.false += [event for event in new if event not in right]
        if right:
            self.wait(PATIENCE, "well_rank")
        self.false += self._new()
        return right[0]["step"] - first if right else None

    def leave(self, stretches: int) -> int:
        """Leave the ranks alone for stretches of a hundred steps; return how many ranks were named."""
        self.wait(100 * stretches)
        return len(self._new())


def cost_loop(world: World, folder: str, blocks: int, steps: int) -> list[float]:
    """Seconds that the watch adds to a step, of each pair of blocks of steps with and without it."""
    recorder = Recorder(Path(folder), is_main=False, world_size=world.size)

    def watched() -> float:
        with CollectiveTimer() as timer:
            times = RankTimes(world, timer, recorder, 1.5)
            began = first = times.begin()
            for number in range(1, steps + 1):
                _, *places = sum_over_ranks([0.0, *times.to_send(number)])
                times.end(time.monotonic() - began, 0.0)
                times.received(number, places)
                began = times.begin()
            return (began - first) / steps

    def plain() -> float:
        began = time.monotonic()
        for _ in range(steps):
            sum_over_ranks([0.0])
        return (time.monotonic() - began) / steps

    return [watched() - plain() for _ in range(blocks)]


@contextlib.contextmanager
def small_steps(folder: Path) -> Iterator[Trials]:
    """Ranks whose steps are a few milliseconds of work."""
    context, port = forks(), free_port()
    step: Synchronized[int] = context.Value("i", 0)
    repetitions = int(busy(PART_S))
    arguments = [(folder, rank, port, step, repetitions) for rank in range(RANKS)]
    processes = [context.Process(target=rank_loop, args=each) for each in arguments]
    for process in processes:
        process.start()
    try:
        yield Trials(folder, processes, lambda: step.value, "")
    finally:
        for process in processes:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()


@contextlib.contextmanager
def training_steps(folder: Path) -> Iterator[Trials]:
    """A training of a small network."""
    pack(folder / "shards", (48, 48))
    pack(folder / "shards", (8,), split="validation")
    training = config(
        folder / "shards",
        folder / "cache",
        data={"workers": 1, "prefetch_batches": 2},
        steps=1_000_000,
        global_batch_size=8,
        precision="fp32",
        save_every_steps=1_000_000,
        eval_every_steps=1_000_000,
    )
    run_dir = folder / "run"
    run_directory.prepare(run_dir, check(training, RANKS), {"tracking_uri": "sqlite:///none.db"})
    with RunningAttempt(run_dir, ranks=RANKS) as attempt:
        yield Trials(run_dir, attempt.processes, lambda: finished_steps(run_dir), "pipeline.data.worker")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--undisturbed", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--training", action="store_true")
    parser.add_argument("--cost", action="store_true", help="only what the watch adds to a step")
    arguments = parser.parse_args()
    if arguments.cost:
        with tempfile.TemporaryDirectory() as name:
            seconds = run_ranks(cost_loop, RANKS, name, 30, 500)[0]
        print(f"the watch adds {1e6 * statistics.median(seconds):.0f} us to a step (median of {len(seconds)} pairs)")
        return
    draw = random.Random(arguments.seed)
    steps = training_steps if arguments.training else small_steps
    with tempfile.TemporaryDirectory() as name, steps(Path(name)) as trials:
        trials.wait(50)
        began = time.monotonic()
        false = trials.leave(arguments.undisturbed)
        pace = (time.monotonic() - began) / max(1, 100 * arguments.undisturbed)
        print(
            f"| nothing, 100 steps | {arguments.undisturbed} | {false} named | {1000 * pace:.1f} ms a step |",
            flush=True,
        )
        for part, share in (("computing", 1 / 3), ("data", 1 / 30)):
            counts: list[int] = []
            for _ in range(arguments.trials):
                count = trials.throttle(draw.randrange(RANKS), part, share, draw.uniform(0.01, 0.04))
                counts += [] if count is None else [count]
            steps = f"after {statistics.median(counts):.0f} steps (median), {max(counts)} (most)" if counts else ""
            print(
                f"| {part}, {share:.2f} of the time | {arguments.trials} | {len(counts)} named | {steps} |",
                flush=True,
            )
        print(f"| others named during the trials | | {len(trials.false)} | {trials.false or ''} |")


if __name__ == "__main__":
    main()
