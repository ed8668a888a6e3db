"""The meeting of the ranks, in threads with real sockets."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from jobs.environment import Place, free_port
from jobs.errors import JobError
from jobs.rendezvous import meet, meeting_port


@pytest.fixture
def place():
    return Place(
        rank=0,
        world_size=3,
        local_rank=0,
        local_world_size=3,
        node=0,
        master_addr="127.0.0.1",
        master_port=free_port(),
        job_id="7",
        restarts=0,
    )


def meet_all(place, ranks, timeout_s):
    """What each rank gets, or its error's words."""

    def one(rank):
        try:
            return meet(replace(place, rank=rank), timeout_s)
        except JobError as error:
            return str(error)

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(one, ranks))


def test_all_ranks_learn_all_seats(place, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert meet_all(place, [2, 0, 1], 20) == [[("n1", "3")] * 3] * 3


def test_missing_rank_is_named_on_all_others_in_time(place):
    started = time.monotonic()
    words = meet_all(place, [0, 2], 1)
    assert all(str(text).startswith("rank 1 did not reach rank 0 at 127.0.0.1:") for text in words)
    assert time.monotonic() - started < 10


def test_rank_that_cannot_reach_the_first_says_so(place):
    (words,) = meet_all(place, [1], 1)
    assert "did not reach rank 0 at 127.0.0.1:" in words
    assert "Connection refused" in words


def test_strangers_do_not_count_as_ranks(place):
    def knock():
        for _ in range(50):
            try:
                with socket.create_connection(("127.0.0.1", meeting_port(place)), timeout=1) as peer:
                    peer.sendall(b'[1, "another job", "n9", ""]\n')
                    return
            except OSError:
                time.sleep(0.02)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(knock)
        words = meet_all(place, [0, 2], 1)
    assert all(str(text).startswith("rank 1 did not reach") for text in words)


def test_one_rank_needs_no_meeting(place):
    assert len(meet(replace(place, world_size=1), 0)) == 1
