"""How the ranks of an attempt join."""

import contextlib
import os
import socket
from dataclasses import replace

import pytest

from jobs.job import meet
from pipeline.engine.distributed import World, join_world, leave_world, sum_over_ranks
from pipeline.train.evaluation_task import EvaluationTask
from pipeline.train.job_task import TrainTask
from tests.jobs.support import PLACE
from tests.support.ranks import free_port, run_ranks


def join_beside_another_program(world: World, port: int) -> tuple[bool, float]:
    """Meet and join; between the two another program on rank 0's node wants the port, as while a rank imports torch.

    Returns:
        Whether that program could listen there, and the number of ranks that have joined.
    """
    leave_world()
    place = replace(PLACE, rank=world.rank, world_size=world.size, master_addr="127.0.0.1", master_port=port)
    meet(place, 30, holds_port=TrainTask.takes_port and EvaluationTask.takes_port)
    with contextlib.ExitStack() as other:
        is_taken = False
        if world.is_main:
            with contextlib.suppress(OSError):
                other.enter_context(socket.create_server(("", int(os.environ["MASTER_PORT"]))))
                is_taken = True
        join_world(30)
    return is_taken, sum_over_ranks([1.0])[0]


@pytest.mark.thorough
def test_no_other_program_can_take_the_port_on_which_the_ranks_have_agreed():
    assert run_ranks(join_beside_another_program, 2, free_port()) == [(False, 2.0)] * 2
