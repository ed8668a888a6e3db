"""The rendezvous of the ranks, in threads with real sockets."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from jobs.environment import Place, free_port
from jobs.errors import JobError
from jobs.rendezvous import Meeting, rendezvous, rendezvous_ports
from tests.jobs.support import REPOSITORY


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


def rendezvous_of(place, ranks, timeout_s):
    """What each rank gets, or the message of its error."""

    def one(rank):
        try:
            return rendezvous(replace(place, rank=rank), timeout_s)
        except JobError as error:
            return str(error)

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(one, ranks))


def test_all_ranks_learn_host_and_gpu_of_each_rank(place, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    expected = Meeting(locations=[("n1", "3")] * 3, master_port=place.master_port, address="127.0.0.1")
    assert rendezvous_of(place, [2, 0, 1], 20) == [expected] * 3


def test_every_other_rank_names_the_missing_one_within_the_time_out(place):
    started = time.monotonic()
    messages = rendezvous_of(place, [0, 2], 1)
    assert all(str(text).startswith("rank 1 did not reach rank 0 at 127.0.0.1:") for text in messages)
    assert time.monotonic() - started < 10


def test_rank_that_cannot_reach_rank_0_names_its_address(place):
    (message,) = rendezvous_of(place, [1], 1)
    assert isinstance(message, str)
    assert "did not reach rank 0 at 127.0.0.1:" in message
    assert "Connection refused" in message


def test_connection_of_another_job_does_not_count_as_a_rank(place):
    def connect():
        for _ in range(50):
            try:
                with socket.create_connection(("127.0.0.1", rendezvous_ports(place)[0]), timeout=1) as peer:
                    peer.sendall(b'[1, "another job", "n9", ""]\n')
                    return
            except OSError:
                time.sleep(0.02)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(connect)
        messages = rendezvous_of(place, [0, 2], 1)
    assert all(str(text).startswith("rank 1 did not reach") for text in messages)


def test_ranks_of_a_job_with_the_same_id_in_another_cluster_are_told_apart(tmp_path):
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", MEET, str(rank)],
                    env={**os.environ, "SUBMITIT_FOLDER": cluster, "SLURMD_NODENAME": f"{cluster}{rank}"},
                    cwd=REPOSITORY,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            # The second rank of a job may come first, and find the other job's rank 0.
            for cluster, rank in (("a", 0), ("b", 1), ("b", 0), ("a", 1))
        ]
        met = [process.communicate(timeout=60)[0] for process in processes]
    assert met == ["a0 a1\n", "b0 b1\n", "b0 b1\n", "a0 a1\n"]


MEET = """
import sys, time
from dataclasses import replace
from jobs.rendezvous import rendezvous
from tests.jobs.support import PLACE
rank = int(sys.argv[1])
time.sleep(0.3 * rank)
meeting = rendezvous(replace(PLACE, rank=rank, master_addr="127.0.0.1"), 20)
print(*[host for host, _ in meeting.locations])
"""


def test_single_rank_does_not_wait(place):
    assert len(rendezvous(replace(place, world_size=1), 0).locations) == 1


def test_ports_that_other_programs_use_are_passed_over(place, monkeypatch):
    monkeypatch.setattr("jobs.rendezvous.HELLO_S", 0.5)
    taken = [place.master_port, *rendezvous_ports(place)[:2]]
    with contextlib.ExitStack() as stack:
        # One answers nothing, and the ranks must not wait for it until the time-out.
        for port in taken:
            stack.enter_context(socket.create_server(("", port)))
        meetings = rendezvous_of(place, [0, 1, 2], 60)
        ports = {meeting.master_port for meeting in meetings if isinstance(meeting, Meeting)}
        alone = rendezvous(replace(place, world_size=1), 0).master_port
    assert len(ports) == 1
    assert not {*ports, alone} & set(taken)
