"""What evaluations cost for `tests.benchmarks.scaling`: between two steps on all GPUs, and by a job with one GPU.

A forward pass is taken to last a third of forward and backward, and to launch a third of their kernels. An evaluation
begins anew with its loader workers, which takes as long on any number of nodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tests.benchmarks.scaling import GPUS, Machine, Model, images_per_s, step

SHOWN = (1, 2, 4, 8, 16)
"""Numbers of nodes in the table."""


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Images that are trained on between two evaluations, images of one, and those of its forward passes."""

    between: int
    validation: int
    batch: int


SPLITS = {
    "T": Splits(between=1_281_167, validation=50_000, batch=128),
    "B": Splits(between=1_281_167, validation=50_000, batch=128),
    "Semantic FPN T": Splits(between=4_000 * 32, validation=2_000, batch=1),
    "Mask R-CNN T": Splits(between=117_266, validation=5_000, batch=1),
}


def evaluation_s(model: Model, machine: Machine, splits: Splits, gpus: int) -> float:
    """Seconds of an evaluation on GPUs that have their share of their nodes' cores."""
    forward = max(splits.batch / (3 * model.images_per_s), model.kernels / 3 * machine.launch_s) / splits.batch
    feed = GPUS / (machine.cores * (model.images_per_core_s or machine.images_per_core_s))
    return machine.workers_start_s + splits.validation / gpus * max(forward, feed)


def evaluations(models: Mapping[str, Model], machine: Machine) -> str:
    """The table, in Markdown, with the recipes' intervals and without SyncBN."""
    lines = [
        "| recipe | nodes | pause s | of the training's time | GPU minutes of the pause | of a job | job s |",
        "|" + "---|" * 7,
    ]
    for name, splits in SPLITS.items():
        model = models[name]
        job = machine.start_s + evaluation_s(model, machine, splits, 1)
        for nodes in SHOWN:
            now = step(model, machine, nodes, sync_batchnorm=False)
            if now.idle:
                break
            pause = evaluation_s(model, machine, splits, GPUS * nodes)
            steps = splits.between / images_per_s(now)
            lines.append(
                f"| {name} | {nodes} | {pause:.1f} | {pause / (pause + steps):.1%} | {pause * GPUS * nodes / 60:.1f} "
                f"| {job / 60:.1f} | {job:.0f} |"
            )
    return "\n".join(lines)
