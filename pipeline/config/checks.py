"""Which values of a `TrainConfig` are possible, alone and together."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pipeline.config.schema import AUTO, LARGEST_MICRO_BATCH, ConfigError, DistillationConfig, TrainConfig
from pipeline.config.serialise import flatten, to_dict

RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    (
        "must be greater than 0",
        lambda value: value > 0,
        (
            "global_batch_size",
            "micro_batch_size",
            "epochs",
            "steps",
            "save_every_steps",
            "keep_checkpoints",
            "eval_every_steps",
            "log_every_steps",
            "collective_timeout_s",
            "data.lanes",
            "mix.group_size",
            "data.block_shards",
            "data.prefetch_batches",
            "data.cache_gb",
            "augment.crop_ratio",
            "augment.std",
            "optimizer.lr",
            "schedule.warmup_steps",
            "segmentation.scale",
            "segmentation.scale_ratio",
            "segmentation.divisor",
            "detection.scale",
            "detection.target_kb",
            "schedule.step_epochs",
            "distillation.temperature",
        ),
    ),
    ("must be greater than 1", lambda value: value > 1, ("slow_factor",)),
    (
        "must be 0 or more",
        lambda value: value >= 0,
        (
            "seed",
            "max_skipped_batches",
            "profile",
            "data.workers",
            "data.max_replacements",
            "mix.mixup",
            "mix.cutmix",
            "optimizer.clip_grad_norm",
            "optimizer.eps",
            "optimizer.weight_decay",
            "schedule.warmup_epochs",
            "schedule.warmup_lr",
            "schedule.min_lr",
            "schedule.cooldown_epochs",
        ),
    ),
    (
        "must be in [0, 1]",
        lambda value: 0 <= value <= 1,
        ("exclude_share", "augment.horizontal_flip", "augment.random_erasing", "mix.switch", "mix.probability"),
    ),
    (
        "must be in [0, 1)",
        lambda value: 0 <= value < 1,
        ("ema_decay", "model.drop_path_rate", "mix.label_smoothing", "optimizer.betas"),
    ),
    (
        "must be in (0, 1]",
        lambda value: 0 < value <= 1,
        (
            "augment.crop_scale",
            "augment.evaluation_crop",
            "optimizer.layer_decay",
            "segmentation.cat_max_ratio",
            "schedule.warmup_ratio",
            "distillation.weight",
        ),
    ),
    ("must be a number", lambda value: True, ("augment.mean",)),
    (
        "is too small: the network halves it 5 times",
        lambda value: value >= 32,
        ("model.image_size", "segmentation.crop_size"),
    ),
)
"""Message for a value out of range, the test that a value is in range, and the fields that it applies to.

Each value of a field with several values is tested."""
LEAST_MICRO_BATCH = 2
"""BatchNorm cannot normalise the one value of each channel that IDConv's pooling leaves of a single image."""
PAIRS = ("augment.crop_scale", "augment.crop_ratio", "segmentation.scale_ratio")
"""Fields that hold a smallest and a largest value."""


def check(config: TrainConfig, world_size: int) -> TrainConfig:
    """Check a configuration for a number of ranks, and return it.

    Raises:
        ConfigError: a value is out of range, or values contradict each other; the message says what would work.
    """
    check_ranges(flatten(to_dict(config)))
    if config.micro_batch_size == AUTO:
        if not micro_batch_candidates(config, world_size):
            # Without a candidate the one that is taken by default is refused too, and the message says why.
            check(replace(config, micro_batch_size=None), world_size)
        return config
    micro = config.micro_batch(world_size)
    if micro < LEAST_MICRO_BATCH:
        raise ConfigError(
            f"micro_batch_size {micro}: the norm in IDConv is over the images of a micro-batch and needs two; "
            f"{_fitting_hint(config, world_size)}"
        )
    if config.global_batch_size % (micro * world_size):
        raise ConfigError(
            f"global_batch_size {config.global_batch_size} is not divisible by micro_batch_size {micro} "
            f"x world_size {world_size}; {_fitting_hint(config, world_size)}"
        )
    if config.distill is None and config.distillation != DistillationConfig():
        raise ConfigError("distillation says how to learn from a teacher, and there is none: give --train.distill")
    if config.compile and config.gradient_checkpointing:
        raise ConfigError("compile decides by itself what is recomputed: leave out gradient_checkpointing")
    incompatible = {
        "zero_stage 3, which gathers weights during the step": config.zero_stage == 3,
        "compile, which schedules the computation itself": config.compile,
        "gradient_checkpointing, which reads the random state during the step": config.gradient_checkpointing,
    }
    refused = [other for other, on in incompatible.items() if on and config.cuda_graphs]
    if refused:
        raise ConfigError(f"cuda_graphs cannot record a step with {refused[0]}: leave out one of the two")
    mixing = config.mix.mixup > 0 or config.mix.cutmix > 0
    if mixing and micro % 2:
        raise ConfigError(
            f"mixup pairs the images of a micro-batch, but micro_batch_size is {micro}: take an even one, "
            "or --train.mix.mixup 0 --train.mix.cutmix 0"
        )
    return config


def micro_batch_candidates(config: TrainConfig, world_size: int) -> list[int]:
    """Return the micro-batches among which `--train.micro-batch-size auto` finds one, the smallest first.

    They are those that `check` takes of the ones that may be taken by default.
    """
    candidates = []
    for micro in config.possible_micro_batches(world_size):
        with suppress(ConfigError):
            check(replace(config, micro_batch_size=micro), world_size)
            candidates.append(micro)
    return candidates


def with_micro_batch(config: TrainConfig, world_size: int, found: int | None = None) -> TrainConfig:
    """Return a checked configuration with a number where it has `auto`: the one found, or the largest candidate."""
    if config.micro_batch_size != AUTO:
        return config
    return replace(config, micro_batch_size=found or micro_batch_candidates(config, world_size)[-1])


def _fitting_hint(config: TrainConfig, world_size: int) -> str:
    """Return the flag that makes the global batch whole micro-batches of at least two images on each rank."""
    size, micro = config.global_batch_size, config.micro_batch(world_size)
    fitting = [m for m in range(LEAST_MICRO_BATCH, size // world_size + 1) if size % (m * world_size) == 0]
    # Where none was given, only one that is small enough would have been taken.
    if fitting and (config.micro_batch_size is not None or min(fitting) <= LARGEST_MICRO_BATCH):
        return f"--train.micro-batch-size {min(fitting, key=lambda m: abs(m - micro))} would fit"
    step = LEAST_MICRO_BATCH * world_size
    near = " or ".join(str(g) for g in (size // step * step, size // step * step + step) if g > 0)
    return f"--train.global-batch-size {near} would fit"


def check_ranges(values: Mapping[str, Any]) -> None:
    """Check the range of each value.

    Args:
        values: all or some fields of a `TrainConfig`, named as by `flatten`.

    Raises:
        ConfigError: a value is out of range; the message names the field and the value.
    """
    for message, in_range, names in RANGES:
        for name in names:
            value = values.get(name)
            each = value if isinstance(value, list) else [value]
            numbers = (number for number in each if number not in (None, AUTO))
            if not all(math.isfinite(number) and in_range(number) for number in numbers):
                raise ConfigError(f"{name} {' '.join(map(str, each))} {message}")
    for name in values.keys() & PAIRS:
        low, high = values[name]
        if low > high:
            raise ConfigError(f"{name} {low} {high} must begin with the smaller of the two")
