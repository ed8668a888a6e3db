"""A rank that hangs is named while the others still wait, and the log of each rank shows where it is."""

import signal
import time
from pathlib import Path

import pytest

from pipeline.config.checks import check
from pipeline.engine.distributed import World, sum_over_ranks
from pipeline.run import directory as run_directory
from pipeline.run.files import read_events
from pipeline.run.recorder import Recorder
from pipeline.train.hang_watch import HangWatch, Whereabouts, find_hanging
from tests.support.attempts import FAILED, RunningAttempt
from tests.support.ranks import run_ranks
from tests.support.small_shards import config, pack


def at(entered: int, *, waits: bool) -> Whereabouts:
    return Whereabouts(entered=entered, waits=waits, place="somewhere")


@pytest.mark.parametrize(
    ("ranks", "hanging"),
    [
        ([at(7, waits=True), None, at(7, waits=True)], [1]),
        ([at(7, waits=True), at(6, waits=False), at(7, waits=True)], [1]),
        # On a GPU the process does not wait in the collective that it has entered.
        ([at(7, waits=False), at(6, waits=False)], [1]),
        # It hangs inside a collective that it has entered as all others have.
        ([at(7, waits=True), at(7, waits=False)], [1]),
        # All are in the same collective: it is the network.
        ([at(7, waits=True), at(7, waits=True)], []),
        # All are at work, as in a long first step.
        ([at(7, waits=False), at(7, waits=False)], []),
        ([None, None], [0, 1]),
    ],
)
def test_who_keeps_the_others_waiting(ranks: list[Whereabouts | None], hanging: list[int]):
    assert find_hanging(ranks) == hanging


@pytest.mark.thorough
@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_hangs_at_a_line_is_named_with_it_before_the_time_out(tmp_path: Path, rank: int):
    pack(tmp_path / "shards", (24,))
    pack(tmp_path / "shards", (8,), split="validation")
    endless = config(
        tmp_path / "shards",
        tmp_path / "cache",
        steps=10_000,
        global_batch_size=8,
        precision="fp32",
        eval_every_steps=10_000,
        collective_timeout_s=10.0,
    )
    run_dir = tmp_path / "run"
    run_directory.prepare(run_dir, check(endless, 2), {"tracking_uri": "sqlite:///none.db"})
    with RunningAttempt(run_dir) as attempt:
        attempt.until_step(5)
        attempt.signal(signal.SIGUSR1, rank)
        began = time.monotonic()
        attempt.until(lambda: any(event["event"] == "hang" for event in read_events(run_dir)))
        waited = time.monotonic() - began
        attempt.processes[1 - rank].join(60)
        output = attempt.output()
    assert waited < 10.0, "named only after the time-out"
    [hang] = [event for event in read_events(run_dir) if event["event"] == "hang"]
    assert (hang["rank"], "<lambda>" in hang["place"]) == (rank, True), hang
    assert f"the others wait for rank {rank} on " in output
    # Both ranks have written their stacks: the one that hangs, and the one that waits for it.
    assert output.count("; its threads:") == 2
    assert "distributed_c10d.py" in output
    assert attempt.processes[1 - rank].exitcode == FAILED


def two_hangs_in_one_step(world: World, folder: str) -> None:
    """Rank 1 keeps rank 0 waiting, and after that rank 0 keeps rank 1 waiting, as batches of an evaluation may."""
    recorder = Recorder(Path(folder), is_main=world.is_main, world_size=world.size)
    entered = 0
    with HangWatch(world, recorder, ["n1", "n2"], lambda: entered, timeout_s=6.0) as watch:
        for hanging in (1, 0):
            if world.rank == hanging:
                time.sleep(6.0)
            elif hanging == 0:
                # It goes on for a while, and so answers later than rank 0 asks.
                time.sleep(0.8)
                watch.alive()
            entered += 1
            sum_over_ranks([0.0])
            watch.alive()
            # Each rank sees that this hang is over.
            time.sleep(0.5)


@pytest.mark.thorough
def test_a_second_hang_in_one_step_is_not_told_by_the_answers_to_the_first(tmp_path: Path):
    run_ranks(two_hangs_in_one_step, 2, str(tmp_path))
    hangs = [event for event in read_events(tmp_path) if event["event"] == "hang"]
    assert [(hang["step"], hang["rank"]) for hang in hangs] == [(0, 1), (0, 0)]


def a_hang_between_the_last_collective_of_a_step_and_its_end(world: World, folder: str) -> None:
    """Rank 0 has finished step 5, and rank 1 is at its end when it hangs."""
    recorder = Recorder(Path(folder), is_main=world.is_main, world_size=world.size)
    entered = 1
    with HangWatch(world, recorder, ["n1", "n2"], lambda: entered, timeout_s=3.0) as watch:
        watch.step(4)
        sum_over_ranks([0.0])
        if world.rank == 1:
            time.sleep(4.0)
        watch.step(5)
        entered += 1
        sum_over_ranks([0.0])


@pytest.mark.thorough
def test_a_rank_that_hangs_at_the_end_of_a_step_says_where_it_is(tmp_path: Path):
    run_ranks(a_hang_between_the_last_collective_of_a_step_and_its_end, 2, str(tmp_path))
    [hang] = [event for event in read_events(tmp_path) if event["event"] == "hang"]
    assert (hang["step"], hang["rank"]) == (5, 1)
    assert "test_hang_watch.py" in hang["place"]
