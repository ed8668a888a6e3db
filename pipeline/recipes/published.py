"""Which published result a recipe aims at, and what a training of it does otherwise than the training behind it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.config.checks import with_micro_batch
from pipeline.config.schema import AUTO, TrainConfig
from pipeline.config.serialise import MAY_CHANGE, flatten, to_dict

BATCH = 1024
"""Samples of upstream's step, on 8 GPUs; SyncBN takes its statistics over all of them."""
_COMPARED_ELSEWHERE = frozenset({"precision", "batch_norm", "global_batch_size", "schedule.per", "augment.mode"})
_NO_VALUES = ("seed", "data.", "eval_every_steps", "initialise_")


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published result."""

    result: str
    """The result in words, with its source."""
    value: float
    """The primary metric of the recipe's task, in [0, 1]."""
    unpublished: str | None = None
    """What the source leaves open, so that the recipe cannot be compared with it; None: it gives all values."""


def describe_aim(
    published: Published, recipe: TrainConfig, config: TrainConfig, world_size: int, *, on_gpus: bool
) -> dict[str, Any]:
    """Return what `config.json` and the MLflow run say on the published result: `result`, `value`, `differences`.

    Args:
        published: the result that the recipe aims at.
        recipe: the training of the recipe.
        config: the training, with what the user has changed.
        world_size: number of ranks.
        on_gpus: whether they compute on GPUs; SyncBN does not exist on CPUs.
    """
    if published.unpublished is not None:
        differences = [published.unpublished]
    else:
        differences = list(_compare(config, world_size, on_gpus))
    return {
        "result": published.result,
        "value": published.value,
        "differences": [*differences, *_changed(recipe, config)],
    }


def _compare(config: TrainConfig, world_size: int, on_gpus: bool) -> Iterator[str]:
    """Iterate over what a training does otherwise than upstream's scripts."""
    if config.precision != "fp16":
        yield f"{config.precision} instead of fp16"
    if config.global_batch_size != BATCH:
        yield f"{config.global_batch_size:,} samples a step instead of {BATCH:,}"
    is_synchronised = config.batch_norm == "sync" and on_gpus
    group = with_micro_batch(config, world_size).micro_batch(world_size) * (world_size if is_synchronised else 1)
    if config.micro_batch_size == AUTO and on_gpus:
        yield f"BatchNorm statistics over the samples that fit into memory, at most {group:,}, instead of {BATCH:,}"
    elif group != BATCH:
        yield f"BatchNorm statistics over {group:,} samples instead of {BATCH:,}"
    if config.schedule.per == "step":
        yield "the learning rate changes every step instead of every epoch"
    if config.augment.mode == "fast":
        yield "crops and RandAugment are drawn from timm's distributions, but computed by OpenCV instead of Pillow"
    yield "every image is read once an epoch, and a step may span two epochs; upstream drops an epoch's last samples"


def _changed(recipe: TrainConfig, config: TrainConfig) -> list[str]:
    """Return the values that the user has changed and that the result depends on."""
    before, after = flatten(to_dict(recipe)), flatten(to_dict(config))
    return [
        f"{name} {_shown(after[name])} instead of {_shown(before[name])}"
        for name in before
        if before[name] != after[name]
        and name not in MAY_CHANGE | _COMPARED_ELSEWHERE
        and not name.startswith(_NO_VALUES)
    ]


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
