"""The ranks of one attempt: who this process is, and the few things that all of them say to each other."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

TIMEOUT = timedelta(minutes=10)
"""How long a rank waits for the others in a collective before the attempt ends with an error."""


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


def join_world() -> World:
    """Start the process group from the environment (one process without it) and return this rank's place in it.

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
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=TIMEOUT)
    return World(rank=rank, local_rank=local_rank, size=size, device=device)


def leave_world() -> None:
    """Tear the process group down, if there is one."""
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
