"""Run a function in N processes with a process group of gloo, as ranks of one job.

The ranks are forked from a server that has imported torch and DeepSpeed once: an import in each would take longer than
most tests.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import pickle
import socket
import traceback
from collections.abc import Callable
from typing import Any

SERVER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Environment of the process that ranks are forked from: a process must not have threads when it forks."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def forks(*modules: str) -> Any:
    """The multiprocessing context whose processes are forked with `tests.support.preload` and `modules` imported.

    `modules` have an effect only at the first call in a process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.preload", *modules])
    former = {name: os.environ.get(name) for name in SERVER_ENVIRONMENT}
    os.environ |= SERVER_ENVIRONMENT
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        for name, value in former.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return context


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """The environment variables that torchrun sets for a rank."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }


def _rank(function: Callable[..., Any], rank: int, size: int, port: int, args: tuple[Any, ...], out: Any) -> None:
    os.environ |= environment(rank, size, port)
    from pipeline.engine.distributed import join_world, leave_world

    try:
        world = join_world()
        result = function(world, *args)
        leave_world()
        out.put((rank, pickle.dumps(result), None))
    except BaseException:
        out.put((rank, None, traceback.format_exc()))


def run_ranks(function: Callable[..., Any], size: int, *args: Any, timeout_s: float = 240) -> list[Any]:
    """Run `function(world, *args)` in one process for each rank; returns the results in the order of ranks."""
    context = forks(function.__module__)
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
