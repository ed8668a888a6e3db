"""The ranks of one attempt: this process's place among them, and the few collectives of the training."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from pipeline.engine.deepspeed_imports import end_deferral

REPORT_S = 5.0
"""Seconds that a rank whose collective failed waits for the other ranks to report the same."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the ranks, from the variables that torchrun and `jobs` export."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes what is written once for all ranks."""
        return self.rank == 0


def join_world(timeout_s: float = 600.0) -> World:
    """Start the process group and return this rank's place in it.

    The place comes from the variables that torchrun exports (`RANK`, `WORLD_SIZE`, …); without them this process is the
    only rank. NCCL carries tensors on GPUs, gloo those on the CPU. A node with more ranks than GPUs trains on its CPU.

    Args:
        timeout_s: a collective fails when another rank does not join it for this long (`silent_ranks` names that rank).
    """
    rank = int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if torch.cuda.is_available() and local_size <= torch.cuda.device_count():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    else:
        device = torch.device("cpu")
        backend = "gloo"
        os.environ["DS_ACCELERATOR"] = "cpu"
        share = max(1, len(os.sched_getaffinity(0)) // local_size)
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", share)))
    timeout = timedelta(seconds=timeout_s)
    with _store_on_held_port(size, timeout):
        dist.init_process_group(backend, rank=rank, world_size=size, timeout=timeout)
    return World(rank=rank, local_rank=local_rank, size=size, device=device)


@contextlib.contextmanager
def _store_on_held_port(size: int, timeout: timedelta) -> Iterator[None]:
    """Have the store of the process group listen on the socket that rank 0 was started with, if it has one.

    Since this process has held the port from the moment in which it was chosen, no other program has taken it.
    """
    holder = os.environ.pop("MASTER_SOCKET", None)
    if holder is None:
        yield
        return
    # The process group's own store finds the one that this process serves on the port already, and keeps it.
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        size,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=int(holder),
    )
    yield
    del store


def leave_world() -> None:
    """Destroy the process group, if there is one."""
    end_deferral()
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Element-wise sum over all ranks in float64. Collective, through gloo."""
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.tolist()


def broadcast_from_main(value: object) -> object:
    """The picklable `value` of rank 0, on every rank. Collective."""
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather_objects(value: object) -> list[object]:
    """The picklable values of all ranks, in the order of ranks, on every rank. Collective."""
    box: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box


def join_on_main(values: list[Any]) -> list[Any]:
    """The lists of all ranks joined in the order of ranks, on rank 0; empty elsewhere. Collective, through gloo."""
    is_main = dist.get_rank() == 0
    box: list[Any] | None = [None] * dist.get_world_size() if is_main else None
    dist.gather_object(values, box, dst=0)
    return [value for part in box or () for value in part]


def silent_ranks(error: BaseException) -> list[int] | None:
    """Find out which ranks hang or are lost, after a collective has failed with `error`.

    Every rank that still works fails at about the same time and reports that to the store of rank 0. A rank that hangs
    does not report. If the store itself does not answer, rank 0 is the one that hangs.

    Returns:
        The ranks that did not report; None if `error` is not the failure of a collective.
    """
    words = str(error).lower()
    if not dist.is_initialized() or not any(w in words for w in ("timed out", "timeout", "connection", "peer")):
        return None
    size, rank = dist.get_world_size(), dist.get_rank()
    silent = [0]

    def ask_the_store() -> None:
        with contextlib.suppress(RuntimeError):
            store = dist.distributed_c10d._get_default_store()
            store.set(f"failed/{rank}", "")
            time.sleep(REPORT_S)
            silent[:] = [other for other in range(size) if not store.check([f"failed/{other}"])]

    # A store whose process is stopped keeps its caller waiting for ever.
    asking = threading.Thread(target=ask_the_store, name="silent-ranks", daemon=True)
    asking.start()
    asking.join(2 * REPORT_S)
    return silent
