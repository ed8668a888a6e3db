"""A model of scaling: `python -m tests.benchmarks.scaling`; `--measure` compares it with 1, 2 and 4 processes here.

A training step on `nodes` nodes of 8 GPUs takes the longest of computing, communication and loading, which overlap,
plus SyncBN, which overlaps with nothing. Each constant says where it was measured or cited; a flag changes it.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

GPUS = 8
GLOBAL_BATCH = 1024


@dataclass(frozen=True, kw_only=True)
class Model:
    """A TransXNet variant.

    Attributes:
        parameters: number of parameters; counted.
        buffers: number of values in buffers, BatchNorm's statistics; counted.
        images_per_s: bound for one H200 with fused kernels at 128 images, from bytes and FLOPs.
        kernels: launches of one fused step at any batch size; counted for T, scaled by blocks for the others.
    """

    parameters: int
    buffers: int
    images_per_s: float
    kernels: int = 761


MODELS = {
    "transxnet_t": Model(parameters=12_834_808, buffers=92_092, images_per_s=18_100),
    "transxnet_s": Model(parameters=26_864_068, buffers=167_444, images_per_s=8_900, kernels=1_015),
    "transxnet_b": Model(parameters=48_009_002, buffers=273_101, images_per_s=5_800, kernels=1_395),
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Properties of a node and its network.

    Attributes:
        launch_s: seconds of a kernel launch; measured on an H200 host.
        network_gb_s: bandwidth between nodes, shared by the GPUs of a node; eight 400 Gb/s adapters at 80 %.
        nvlink_gb_s: bandwidth of each GPU inside a node; 450 GB/s at 80 %.
        hop_s: seconds of one message between two nodes (NCCL tree).
        cores: cores of a node for the loader.
        images_per_core_s: loader's rate on one core for images stored at 400 px; measured.
        image_kb: mean size of an image stored at 400 px; measured (110 KB in ImageNet).
        batchnorms: SyncBN collectives in a step.
        requeue_s: seconds from the end of an attempt to the next one's start: Slurm's credential lifetime.
        start_s: seconds from an attempt's start to its first step; measured with four ranks on two cores.
        store_gb_s: bandwidth of the shared file system for all nodes.
        hash_gb_s: SHA-256 on one core; measured.
        gpu_hours_between_failures: GPU hours for one failure (Llama 3: 419 interruptions of 16,384 GPUs in 54 days).
    """

    launch_s: float = 3.5e-6
    network_gb_s: float = 320.0
    nvlink_gb_s: float = 360.0
    hop_s: float = 10e-6
    cores: int = 128
    images_per_core_s: float = 1_348.0
    image_kb: float = 45.0
    batchnorms: int = 356
    requeue_s: float = 121.0
    start_s: float = 40.0
    store_gb_s: float = 20.0
    hash_gb_s: float = 0.93
    gpu_hours_between_failures: float = 50_700.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """Parts of a step and of a save in seconds; MB sent by one GPU and read by one node."""

    nodes: int
    batch: int
    compute: float
    talk: float
    sync: float
    feed: float
    allreduce_mb: float
    reads_mb_s: float
    save: float
    restart: float
    goodput: float

    @property
    def total(self) -> float:
        """Duration of a step."""
        return max(self.compute, self.talk, self.feed) + self.sync

    @property
    def limit(self) -> str:
        """The part that bounds the step."""
        parts = {"computing": self.compute, "gradients": self.talk, "loading": self.feed}
        longest = max(parts, key=parts.__getitem__)
        return f"{longest} + SyncBN" if self.sync > max(parts.values()) / 2 else longest


def allreduce_bytes(parameters: int, world_size: int) -> float:
    """Bytes that one rank sends in a step of ZeRO-1: fp32 gradients scattered, parameters gathered, ring or tree."""
    return 2 * (world_size - 1) / world_size * 4 * parameters


def state_bytes(parameters: int, buffers: int, world_size: int) -> float:
    """Bytes of a checkpoint: weights, moments and average in fp32, and each rank's own buffers and their average."""
    return 16 * parameters + 8 * buffers * world_size


def step(
    model: Model, machine: Machine, nodes: int, *, sync_batchnorm: bool = True, global_batch: int = GLOBAL_BATCH
) -> Step:
    """Predict one step with the recipe's global batch, divided over all GPUs."""
    world = nodes * GPUS
    batch = max(1, global_batch // world)
    images = batch * world
    compute = max(batch / model.images_per_s, model.kernels * machine.launch_s)
    sent = allreduce_bytes(model.parameters, world)
    # Inside a node each GPU sends alone; between nodes the eight GPUs share the adapters, an eighth each.
    talk = sent / (machine.nvlink_gb_s * 1e9)
    hops = 0.0
    if nodes > 1:
        talk = max(talk, allreduce_bytes(model.parameters, nodes) / (machine.network_gb_s * 1e9))
        hops = 2 * math.ceil(math.log2(nodes)) * machine.hop_s
    # Every BatchNorm reduces its statistics once in the forward and once in the backward, one after the other.
    sync = machine.batchnorms * (20e-6 + hops) if sync_batchnorm else 0.0
    feed = batch * GPUS / (machine.cores * machine.images_per_core_s)
    total = max(compute, talk + hops, feed) + sync
    state = state_bytes(model.parameters, model.buffers, world)
    # Every rank hashes its file; rank 0 hashes all files before it publishes the checkpoint.
    save = state / world / (machine.hash_gb_s * 1e9) + state / (machine.store_gb_s * 1e9) + 0.05
    restart = machine.requeue_s + machine.start_s + state / (machine.hash_gb_s * 1e9)
    mtbf = machine.gpu_hours_between_failures * 3600 / world
    # Young's interval between saves, and the share of time that saves, lost steps and restarts take.
    interval = math.sqrt(2 * save * mtbf)
    lost = save / interval + (interval / 2 + restart) / mtbf
    return Step(
        nodes=nodes,
        batch=batch,
        compute=compute,
        talk=talk + hops,
        sync=sync,
        feed=feed,
        allreduce_mb=sent / 1e6,
        reads_mb_s=images / nodes * machine.image_kb / 1e3 / total,
        save=save,
        restart=restart,
        goodput=1 - lost,
    )


def table(machine: Machine, *, sync_batchnorm: bool) -> str:
    """The table of all variants, in Markdown."""
    lines = [
        "| model | nodes | images a GPU | step ms | images/s | of linear | computing | gradients | SyncBN | loading "
        "| MB sent a GPU | MB/s read a node | save s | restart s | goodput | bound by |",
        "|" + "---|" * 16,
    ]
    for name, model in MODELS.items():
        first = step(model, machine, 1, sync_batchnorm=sync_batchnorm)
        for nodes in (1, 2, 4, 8, 16, 32, 64, 128, 256):
            now = step(model, machine, nodes, sync_batchnorm=sync_batchnorm)
            rate = now.batch * nodes * GPUS / now.total
            linear = rate / (first.batch * GPUS / first.total * nodes)
            parts = " | ".join(f"{part * 1e3:.2f}" for part in (now.compute, now.talk, now.sync, now.feed))
            lines.append(
                f"| {name[-1].upper()} | {nodes} | {now.batch} | {now.total * 1e3:.2f} | {rate:,.0f} | {linear:.0%} "
                f"| {parts} | {now.allreduce_mb:.0f} | {now.reads_mb_s:,.0f} | {now.save:.2f} | {now.restart:.0f} "
                f"| {now.goodput:.2%} | {now.limit} |"
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, and with `--measure` the comparison with processes on this machine."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scaling", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="compare with 1, 2 and 4 processes on this machine")
    for name, value in vars(Machine()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = vars(parser.parse_args(arguments))
    measure = options.pop("measure")
    machine = Machine(**options)
    for sync_batchnorm in (True, False):
        print(f"\n{'With' if sync_batchnorm else 'Without'} SyncBN, global batch {GLOBAL_BATCH}:\n")
        print(table(machine, sync_batchnorm=sync_batchnorm))
    if measure:
        from tests.benchmarks.scaling_check import check

        print(f"\n{check()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
