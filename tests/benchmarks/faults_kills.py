"""SIGKILL of one rank or of all, at random steps and inside a save."""

import itertools
import random
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.store import CheckpointStore
from pipeline.run.files import read_events, read_metrics
from pipeline.run.goodput import run_spent
from tests.benchmarks.faults_bench import EVERY, Bench, finish, resumed_at
from tests.support.attempts import RunningAttempt, finished_steps


def in_the_making(checkpoints: Path, name: str) -> bool:
    """Whether an unpublished or deleted checkpoint's folder, or a file in it, ends with `name`."""
    found = list(checkpoints.glob(".step_*"))
    return any(path.name.endswith(name) or any(p.name.endswith(name) for p in listed(path)) for path in found)


def listed(folder: Path) -> list[Path]:
    """Entries of a folder that may be removed at any moment."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


@dataclass
class Tally:
    """Counts of the kills at one moment."""

    all_ranks: int = 0
    one_rank: int = 0
    left_parts: int = 0
    recomputed: int = 0
    seconds: float = 0.0


AT_STEP, AT_START = "at a random step", "while it starts"
MOMENTS = {
    AT_STEP: "",
    "as a save begins": ".partial",
    "between two ranks' files of a save": ".sha256",
    "as the manifest is written": "manifest.json",
    "as an old checkpoint is deleted": ".deleted",
    AT_START: "",
}
"""Each moment, and the ending of the file name that shows it."""


def kill_once(attempt: RunningAttempt, moment: str, everyone: bool, chance: random.Random) -> bool:
    """Wait for the moment and kill one rank or all; returns whether the run was still going on."""
    folder = attempt.run_dir / "checkpoints"
    if moment == AT_START:
        time.sleep(chance.uniform(0.0, 1.0))
    else:
        former = len(read_events(attempt.run_dir))
        attempt.until(lambda: len(read_events(attempt.run_dir)) > former)
        first = resumed_at(attempt.run_dir)
        if moment == AT_STEP:
            attempt.until_step(first + chance.randrange(1, EVERY + 3))
            time.sleep(chance.uniform(0.0, 0.1))
        else:
            attempt.until_step(first + 1)
            attempt.until(lambda: in_the_making(folder, MOMENTS[moment]), pause_s=0.0002)
    alive = not attempt.over
    attempt.kill(*([] if everyone else [chance.randrange(2)]))
    # A launcher that lost a rank gives the others a moment, then ends them.
    deadline = time.monotonic() + chance.uniform(0.0, 0.5)
    while time.monotonic() < deadline and any(process.exitcode is None for process in attempt.processes):
        time.sleep(0.01)
    attempt.kill()
    return alive


def kills(bench: Bench, wanted: int, steps: int) -> None:
    """Kill one run `wanted` times, at all moments in turn; adds a row for each moment."""
    run, chance = bench.prepare("kills", steps), random.Random(6)
    bench.reference(steps)
    turns = itertools.cycle(itertools.product(MOMENTS, (True, False)))
    tallies: dict[str, Tally] = {}
    for done in range(wanted):
        moment, everyone = next(turns)
        tally = tallies.setdefault(moment, Tally())
        began = time.monotonic()
        with RunningAttempt(run) as attempt:
            if not kill_once(attempt, moment, everyone, chance):
                raise SystemExit(f"the run ended after {done} kills: give it more steps\n{attempt.output()[-2000:]}")
        tally.all_ranks += everyone
        tally.one_rank += not everyone
        tally.left_parts += in_the_making(run / "checkpoints", "")
        reached, saved = finished_steps(run), (CheckpointStore(run).steps() or [0])[-1]
        begun = max((e["step"] for e in read_events(run) if e["event"] == "save"), default=0)
        assert saved >= begun - EVERY, f"killed at {reached}: the newest checkpoint is {saved}, begun was {begun}"
        tally.recomputed = max(tally.recomputed, reached - saved)
        tally.seconds += time.monotonic() - began
    finish(run)
    for moment, tally in tallies.items():
        outcome = f"{tally.all_ranks} of all ranks, {tally.one_rank} of one"
        if moment not in (AT_STEP, AT_START):
            outcome += f"; {tally.left_parts} left a part of a checkpoint, which no attempt restored"
        times = tally.all_ranks + tally.one_rank
        bench.add(f"kill -9 {moment}", times, outcome, run, steps, tally.recomputed, tally.seconds)
    spent = run_spent(read_events(run), read_metrics(run))
    bench.notes.append(f"All {wanted} kills are of one run of {steps} steps: {spent.describe()}.")
