"""Damaged checkpoints, a full disk, a rank that hangs, a clock that goes backwards, two attempts at once."""

import itertools
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.checkpoint.store import CheckpointStore
from pipeline.run.files import read_metrics
from tests.benchmarks.faults_bench import EVERY, SHORT, STOPPED, TIMEOUT_S, Bench, finish, resumed_at
from tests.support.attempts import FINISHED, INTERRUPTED, RunningAttempt, finished_steps


def tear(checkpoint: Path) -> None:
    path = checkpoint / "rank_00000.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def flip(checkpoint: Path) -> None:
    path = checkpoint / "rank_00001.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 5)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 16]))


def remove(checkpoint: Path) -> None:
    (checkpoint / "rank_00001.safetensors").unlink()


def spoil_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_text('{"schema": 1')


DAMAGE: dict[str, Callable[[Path], None]] = {
    "torn file": tear,
    "flipped bit": flip,
    "missing file": remove,
    "torn manifest": spoil_manifest,
}


def damages(bench: Bench) -> None:
    """Damage the newest checkpoint, and the two newest, in each way."""
    base = bench.prepare("base", SHORT)
    with RunningAttempt(base) as attempt:
        attempt.until_step(STOPPED)
        attempt.signal(signal.SIGTERM)
        assert set(attempt.wait()) == {INTERRUPTED}, attempt.output()[-4000:]
    bench.reference(SHORT)
    for (name, damage), count in itertools.product(DAMAGE.items(), (1, 2)):
        began, run = time.monotonic(), bench.folder / f"{name}-{count}".replace(" ", "-")
        shutil.copytree(base, run)
        store = CheckpointStore(run)
        reached, steps = finished_steps(run), store.steps()
        for step in steps[-count:]:
            damage(store.folder / f"step_{step:08d}")
        output = finish(run)
        named = output.count("damaged checkpoint") // 2  # once in the log, once among the errors
        assert (named, resumed_at(run)) == (count, steps[-count - 1]), output
        which = "the newest checkpoint" if count == 1 else "the two newest"
        outcome = f"named, passed over, resumed at step {steps[-count - 1]}"
        bench.add(f"{name} in {which}", 1, outcome, run, SHORT, reached - steps[-count - 1], time.monotonic() - began)


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path | None]:
    """Mount a file system of `megabytes` MB; yields None where the user may not mount."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disk(bench: Bench) -> None:
    """Fill the disk during a training, and empty it while the training goes on."""
    began = time.monotonic()
    bench.reference(SHORT)
    with small_disk(bench.folder / "small", 200) as disk:
        if disk is None:
            print("| disk full | 0 | not shown: only root may mount a small file system | | | |")
            return
        run = bench.prepare("full", SHORT, disk)
        with RunningAttempt(run, log=bench.folder / "full.log") as attempt:
            attempt.until_step(EVERY + 1)
            ballast = disk / "ballast"
            with suppress(OSError), ballast.open("wb", buffering=0) as file:
                while file.write(bytes(2**20)):
                    pass
            attempt.until(lambda: "could not be written" in attempt.output())
            full = CheckpointStore(run).steps()
            warning = next(w for w in attempt.output().splitlines() if "the checkpoint of step" in w)
            tries = attempt.output().count("the checkpoint of step")
            ballast.unlink()
            attempt.until(lambda: CheckpointStore(run).steps()[-1] > full[-1])
            retried = CheckpointStore(run).steps()[-1]
            assert set(attempt.wait()) == {FINISHED}, attempt.output()[-4000:]
        failed = warning.split("the checkpoint of step ")[1].split()[0]
        outcome = f"step {failed} could not be saved, as {tries} warning said; training went on, step {retried} was"
        bench.add("disk full during a save, then emptied", 1, outcome, run, SHORT, 0, time.monotonic() - began)


def hanging_rank(bench: Bench, rank: int) -> None:
    """Stop a rank with SIGSTOP, as if its node or driver hangs."""
    began, run = time.monotonic(), bench.prepare(f"hanging-{rank}", SHORT)
    bench.reference(SHORT)
    with RunningAttempt(run) as attempt:
        attempt.until_step(EVERY + 2)
        attempt.signal(signal.SIGSTOP, rank)
        stopped = time.monotonic()
        attempt.processes[1 - rank].join(10 * TIMEOUT_S)
        waited = time.monotonic() - stopped
        assert f"rank {rank} of 2 hangs or was lost" in attempt.output(), attempt.output()[-4000:]
    reached = finished_steps(run)
    finish(run)
    outcome = f"the other rank named rank {rank} and ended after {waited:.0f} s (time limit {TIMEOUT_S:.0f} s)"
    bench.add(f"rank {rank} hangs", 1, outcome, run, SHORT, reached - resumed_at(run), time.monotonic() - began)


def clock_backwards(bench: Bench) -> None:
    """Run an attempt whose wall clock goes backwards, a thousand times as fast."""
    began, run = time.monotonic(), bench.prepare("clock", SHORT)
    bench.reference(SHORT)
    with RunningAttempt(run) as attempt:
        attempt.until_step(EVERY + 2)
    with RunningAttempt(run, clock_speed=-1000.0) as attempt:
        attempt.until_step(2 * EVERY + 3)
    reached = finished_steps(run)
    finish(run)
    times = [record["time"] for record in read_metrics(run)]
    assert times != sorted(times)
    outcome = f"resumed at step {resumed_at(run)}, every step once"
    bench.add(
        "clock goes backwards through an attempt",
        1,
        outcome,
        run,
        SHORT,
        reached - resumed_at(run),
        time.monotonic() - began,
    )


def second_attempt(bench: Bench) -> None:
    """Start a second attempt in the same run directory."""
    began, run = time.monotonic(), bench.prepare("second", SHORT)
    bench.reference(SHORT)
    with RunningAttempt(run) as first:
        first.until_step(EVERY)
        with RunningAttempt(run) as second:
            second.wait()
            words = next(w for w in second.output().splitlines() if "another attempt" in w)
        assert set(first.wait()) == {FINISHED}, first.output()[-4000:]
    outcome = f"the second refused: {words.split(': ', 1)[1].split(str(run))[1].strip()}"
    bench.add("two attempts at once", 1, outcome, run, SHORT, 0, time.monotonic() - began)
