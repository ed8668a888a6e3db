"""Run a function in N processes with a process group of gloo, as ranks of one job."""

import multiprocessing
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _rank(function: Callable[..., Any], rank: int, size: int, port: int, args: tuple[Any, ...], out: Any) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    from pipeline.distributed import join_world, leave_world

    try:
        world = join_world()
        result = function(world, *args)
        leave_world()
        out.put((rank, pickle.dumps(result), None))
    except BaseException:
        out.put((rank, None, traceback.format_exc()))


def run_ranks(function: Callable[..., Any], size: int, *args: Any, timeout_s: float = 240) -> list[Any]:
    """`function(world, *args)` on every rank, in fresh processes; the results in the order of ranks."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    port = free_port()
    ranks = [context.Process(target=_rank, args=(function, r, size, port, args, out), daemon=True) for r in range(size)]
    for process in ranks:
        process.start()
    try:
        results: list[Any] = [None] * size
        for _ in ranks:
            rank, result, problem = out.get(timeout=timeout_s)
            if problem:
                raise AssertionError(f"rank {rank} of {size}:\n{problem}")
            results[rank] = pickle.loads(result)
        return results
    finally:
        for process in ranks:
            process.join(5)
            process.kill()
