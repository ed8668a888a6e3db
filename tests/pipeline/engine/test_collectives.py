"""The stopwatch around the collectives: who waits for whom, and how long."""

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pipeline.engine.collectives import CollectiveTimer
from pipeline.engine.distributed import World, gather_objects, sum_over_ranks
from tests.support.ranks import run_ranks

LATE_S = 0.5


def wait_for_rank_1(world: World) -> dict[str, Any]:
    plain = dist.all_reduce
    with CollectiveTimer() as timer:
        dist.barrier()
        timer.take()
        if world.rank == 1:
            time.sleep(LATE_S)
        [total] = sum_over_ranks([1.0])
        at_once = timer.take()
        if world.rank == 1:
            time.sleep(LATE_S)
        tensor = torch.ones(3)
        work = dist.all_reduce(tensor, async_op=True)
        started = timer.take()
        work.wait()
        later = timer.take()
        is_done = work.is_completed()
        gather_objects(world.rank)
        entered = timer.entered
    return {
        "total": total,
        "sum": tensor.tolist(),
        "at once": at_once,
        "started": started,
        "later": later,
        "done": is_done,
        "entered": entered,
        "restored": dist.all_reduce is plain,
    }


@pytest.mark.thorough
def test_the_rank_that_comes_late_is_the_one_that_waits_least():
    early, late = run_ranks(wait_for_rank_1, 2)
    for answer in (early, late):
        assert answer["total"] == 2.0
        assert answer["sum"] == [2.0] * 3
        assert answer["done"]
        assert answer["restored"]
        assert answer["started"] == 0.0
        # The collectives within another one are its own.
        assert answer["entered"] == 4
    for moment in ("at once", "later"):
        assert early[moment] > LATE_S / 2, moment
        assert early[moment] > 2 * late[moment], moment
