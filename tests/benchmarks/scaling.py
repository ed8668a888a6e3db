"""A model of scaling: `python -m tests.benchmarks.scaling`; `--measure` compares it with 1, 2 and 4 processes here.

A training step on `nodes` nodes of 8 GPUs takes the longest of computing, communication and loading, which overlap,
plus SyncBN, which overlaps with nothing. Each constant says where it was measured or cited; a flag changes it.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

GPUS = 8
GLOBAL_BATCH = 1024
NODES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SAVE_EVERY = 500
"""Steps between two checkpoints; the default."""
RECORD_BYTES = 308
"""Bytes of a step's record in the journal; measured in the demo."""
ENOUGH = 0.8
"""Share of linear scaling above which no limit is named."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network with what is particular to its recipe.

    Attributes:
        parameters: number of parameters; counted.
        buffers: number of values in buffers, BatchNorm's statistics; counted.
        images_per_s: bound for one H200 with fused kernels, from bytes and FLOPs at 128 images; for dense networks the
            classifier's, divided by how many times its FLOPs the recipe's image takes.
        kernels: launches of one fused step at any batch size; counted for T, scaled by blocks for the others.
        global_batch: images of a step.
        batchnorms: SyncBN collectives in a step; None for the machine's figure.
        images_per_core_s: loader's rate on one core; None for the machine's figure.
        image_kb: mean size of a stored image; None for the machine's figure.
    """

    parameters: int
    buffers: int
    images_per_s: float
    kernels: int = 761
    global_batch: int = GLOBAL_BATCH
    batchnorms: int | None = None
    images_per_core_s: float | None = None
    image_kb: float | None = None


MODELS = {
    "T": Model(parameters=12_834_808, buffers=92_092, images_per_s=18_100),
    "S": Model(parameters=26_864_068, buffers=167_444, images_per_s=8_900, kernels=1_015),
    "B": Model(parameters=48_009_002, buffers=273_101, images_per_s=5_800, kernels=1_395),
}
"""The classifier of each variant."""


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
        workers_start_s: seconds until the loader workers of an evaluation have started; measured as processor time.
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
    workers_start_s: float = 0.5
    store_gb_s: float = 20.0
    hash_gb_s: float = 0.93
    gpu_hours_between_failures: float = 50_700.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """Images of a GPU, GPUs without any, parts of a step and of a save in seconds; MB sent by a GPU, read by a node."""

    nodes: int
    batch: int
    idle: int
    compute: float
    launches: float
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
        return max(self.compute, self.launches, self.talk, self.feed) + self.sync

    @property
    def limit(self) -> str:
        """The part that bounds the step."""
        if self.idle:
            return f"{self.idle} GPUs without an image"
        parts = {
            "computing": self.compute,
            "launches": self.launches,
            "gradients": self.talk,
            "loading": self.feed,
        }
        longest = max(parts, key=parts.__getitem__)
        if self.sync > parts[longest]:
            return "SyncBN"
        return f"{longest} + SyncBN" if self.sync > parts[longest] / 2 else longest


def allreduce_bytes(parameters: int, world_size: int) -> float:
    """Bytes that one rank sends in a step of ZeRO-1: fp32 gradients scattered, parameters gathered, ring or tree."""
    return 2 * (world_size - 1) / world_size * 4 * parameters


def state_bytes(parameters: int, buffers: int, world_size: int) -> float:
    """Bytes of a checkpoint: weights, moments and average in fp32, and each rank's own buffers and their average."""
    return 16 * parameters + 8 * buffers * world_size


def step(model: Model, machine: Machine, nodes: int, *, sync_batchnorm: bool = True) -> Step:
    """Predict one step with the recipe's global batch, divided over all GPUs that it has an image for."""
    world = nodes * GPUS
    batch = max(1, model.global_batch // world)
    images = min(batch * world, model.global_batch)
    compute, launches = batch / model.images_per_s, model.kernels * machine.launch_s
    sent = allreduce_bytes(model.parameters, world)
    # Inside a node each GPU sends alone; between nodes the eight GPUs share the adapters, an eighth each.
    talk = sent / (machine.nvlink_gb_s * 1e9)
    hops = 0.0
    if nodes > 1:
        talk = max(talk, allreduce_bytes(model.parameters, nodes) / (machine.network_gb_s * 1e9))
        hops = 2 * math.ceil(math.log2(nodes)) * machine.hop_s
    # Every BatchNorm reduces its statistics once in the forward and once in the backward, one after the other.
    batchnorms = machine.batchnorms if model.batchnorms is None else model.batchnorms
    sync = batchnorms * (20e-6 + hops) if sync_batchnorm else 0.0
    feed = batch * GPUS / (machine.cores * (model.images_per_core_s or machine.images_per_core_s))
    total = max(compute, launches, talk + hops, feed) + sync
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
        idle=world - images // batch,
        compute=compute,
        launches=launches,
        talk=talk + hops,
        sync=sync,
        feed=feed,
        allreduce_mb=sent / 1e6,
        reads_mb_s=images / nodes * (model.image_kb or machine.image_kb) / 1e3 / total,
        save=save,
        restart=restart,
        goodput=1 - lost,
    )


def images_per_s(now: Step) -> float:
    """Images of a step by its duration."""
    return now.batch * (now.nodes * GPUS - now.idle) / now.total


def share_of_linear(model: Model, machine: Machine, now: Step, *, sync_batchnorm: bool) -> float:
    """The rate beside that of one node, as many times."""
    first = step(model, machine, 1, sync_batchnorm=sync_batchnorm)
    return images_per_s(now) / (images_per_s(first) * now.nodes)


def first_limits(models: Mapping[str, Model], machine: Machine, *, sync_batchnorm: bool) -> str:
    """How far each recipe scales at 80 % of linear or more, and what ends it, in Markdown."""
    lines = ["| recipe | batch | nodes | images/s there | next | of linear there | first limit |", "|" + "---|" * 7]
    for name, model in models.items():
        last = step(model, machine, 1, sync_batchnorm=sync_batchnorm)
        for nodes in NODES[1:]:
            now = step(model, machine, nodes, sync_batchnorm=sync_batchnorm)
            share = share_of_linear(model, machine, now, sync_batchnorm=sync_batchnorm)
            if share < ENOUGH:
                limit = f"{nodes} | {share:.0%} | {now.limit}"
                break
            last = now
        else:
            limit = f"| | none up to {NODES[-1]}"
        rate = images_per_s(last)
        lines.append(f"| {name} | {model.global_batch} | {last.nodes} | {rate:,.0f} | {limit} |")
    return "\n".join(lines)


def table(models: Mapping[str, Model], machine: Machine, *, sync_batchnorm: bool) -> str:
    """The table of all variants, in Markdown."""
    lines = [
        "| model | nodes | images a GPU | step ms | images/s | of linear | computing | launches | gradients | SyncBN "
        "| loading | MB sent a GPU | MB/s read a node | save s | restart s | goodput | bound by |",
        "|" + "---|" * 17,
    ]
    for name, model in models.items():
        for nodes in NODES:
            now = step(model, machine, nodes, sync_batchnorm=sync_batchnorm)
            rate = images_per_s(now)
            linear = share_of_linear(model, machine, now, sync_batchnorm=sync_batchnorm)
            parts = " | ".join(
                f"{part * 1e3:.2f}" for part in (now.compute, now.launches, now.talk, now.sync, now.feed)
            )
            lines.append(
                f"| {name} | {nodes} | {now.batch} | {now.total * 1e3:.2f} | {rate:,.0f} | {linear:.0%} "
                f"| {parts} | {now.allreduce_mb:.0f} | {now.reads_mb_s:,.0f} | {now.save:.2f} | {now.restart:.0f} "
                f"| {now.goodput:.2%} | {now.limit} |"
            )
    return "\n".join(lines)


def mirror_table(models: Mapping[str, Model], machine: Machine) -> str:
    """What `--mirror` copies, in Markdown: a checkpoint every `SAVE_EVERY` steps, with the journal until then."""
    lines = ["| model | nodes | MB a checkpoint | MB of journal at step 100,000 | MB/s to keep up |", "|" + "---|" * 5]
    journal = RECORD_BYTES * 100_000
    for name, model in models.items():
        for nodes in (1, 4):
            now = step(model, machine, nodes, sync_batchnorm=False)
            state = state_bytes(model.parameters, model.buffers, nodes * GPUS - now.idle)
            rate = (state + journal) / (SAVE_EVERY * now.total)
            lines.append(f"| {name} | {nodes} | {state / 1e6:.0f} | {journal / 1e6:.0f} | {rate / 1e6:.0f} |")
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
    from tests.benchmarks.scaling_dense import DENSE

    models = MODELS | DENSE
    for sync_batchnorm in (True, False):
        print(f"\n{'With' if sync_batchnorm else 'Without'} SyncBN:\n")
        print(first_limits(models, machine, sync_batchnorm=sync_batchnorm))
        print(f"\n{table(models, machine, sync_batchnorm=sync_batchnorm)}")
    print(f"\nThe mirror, without SyncBN:\n\n{mirror_table(models, machine)}")
    from tests.benchmarks.scaling_evaluation import evaluations

    print(f"\nEvaluations:\n\n{evaluations(models, machine)}")
    if measure:
        from tests.benchmarks.scaling_check import check

        print(f"\n{check()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
