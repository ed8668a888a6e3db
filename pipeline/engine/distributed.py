"""The ranks of one attempt: who this process is, and the few things that all of them say to each other."""

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from pipeline.engine.deepspeed_imports import end_deferral

ROLL_CALL_S = 5.0
"""How long the ranks that gave up waiting wait for each other's names."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the ranks, from the variables that torchrun and `jobs` export."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes what is written once."""
        return self.rank == 0


def join_world(timeout_s: float = 600.0) -> World:
    """Start the process group from the environment (one process without it) and return this rank's place in it.

    A rank that waits longer than `timeout_s` for the others in a collective gives up (`silent_ranks` then says whom
    it waited for).

    NCCL for tensors on GPUs, gloo for those on the CPU. A node with more ranks than GPUs trains on its CPU.
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
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s))
    return World(rank=rank, local_rank=local_rank, size=size, device=device)


def leave_world() -> None:
    """Tear the process group down, if there is one."""
    end_deferral()
    if dist.is_initialized():
        dist.destroy_process_group()


def sum_over_ranks(values: Sequence[float]) -> list[float]:
    """Element-wise float64 sum over all ranks, over the CPU's group."""
    tensor = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.tolist()


def agreed_by_main(value: object) -> object:
    """Rank 0's picklable `value`, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def everyones(value: object) -> list[object]:
    """The picklable `value` of every rank, in the order of ranks."""
    box: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box


def silent_ranks(error: BaseException) -> list[int] | None:
    """After a collective failed with `error`: the ranks that do not say they failed too; None for any other error.

    All ranks that still work fail at about the same time and sign in at rank 0's store; who hangs does not. Where the
    store itself does not answer, it is rank 0.
    """
    words = str(error).lower()
    if not dist.is_initialized() or not any(w in words for w in ("timed out", "timeout", "connection", "peer")):
        return None
    size, rank = dist.get_world_size(), dist.get_rank()
    silent = [0]

    def call_the_roll() -> None:
        with contextlib.suppress(RuntimeError):
            store = dist.distributed_c10d._get_default_store()
            store.set(f"gave-up/{rank}", "")
            time.sleep(ROLL_CALL_S)
            silent[:] = [other for other in range(size) if not store.check([f"gave-up/{other}"])]

    # A store whose process is stopped keeps its caller waiting for ever.
    roll_call = threading.Thread(target=call_the_roll, name="roll-call", daemon=True)
    roll_call.start()
    roll_call.join(2 * ROLL_CALL_S)
    return silent
