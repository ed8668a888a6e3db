"""Named trainings: each a function that returns a full config, its docstring the command and what to expect."""

from collections.abc import Callable
from dataclasses import replace

from jobs import Resources
from pipeline.config import (
    AugmentConfig,
    DataConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


def demo() -> TrainConfig:
    """`python -m pipeline.launch --recipe demo`: handwritten digits, transxnet_n at 32 px, two processes on a CPU.

    Top-1 at least 0.95 on 360 held-out digits, in under 3 minutes on 2 cores.
    """
    return TrainConfig(
        epochs=7,
        global_batch_size=64,
        precision="fp32",
        ema_decay=0.97,
        save_every_steps=50,
        eval_every_steps=100,
        log_every_steps=25,
        model=ModelConfig(name="transxnet_n", image_size=32),
        data=DataConfig(workers=0, lanes=4),
        augment=AugmentConfig(
            crop_scale=(0.7, 1.0),
            horizontal_flip=0.0,
            interpolation="bilinear",
            rand_augment=None,
            random_erasing=0.0,
            evaluation_crop=1.0,
        ),
        mix=MixConfig(mixup=0.0, cutmix=0.0),
        optimizer=OptimizerConfig(lr=2e-3),
        schedule=ScheduleConfig(warmup_epochs=1.0, cooldown_epochs=1.0),
    )


def tiny() -> TrainConfig:
    """`python -m pipeline.launch --nodes 4 --gpus-per-node 8`: TransXNet-T by upstream's recipe. Reported: 81.6 %."""
    return TrainConfig()


def small() -> TrainConfig:
    """`python -m pipeline.launch --recipe small --nodes 4 --gpus-per-node 8`: TransXNet-S. Reported: 83.8 % top-1."""
    return replace(tiny(), model=ModelConfig(name="transxnet_s"), ema_decay=0.99985)


def base() -> TrainConfig:
    """`python -m pipeline.launch --recipe base --nodes 4 --gpus-per-node 8`: TransXNet-B. Reported: 84.6 % top-1."""
    return replace(
        tiny(),
        model=ModelConfig(name="transxnet_b"),
        ema_decay=0.99985,
        augment=AugmentConfig(evaluation_crop=0.95),
    )


def base_384() -> TrainConfig:
    """TransXNet-B fine-tuned at 384 px from a finished `base` run. Reported: 85.5 % top-1.

    `python -m pipeline.launch --recipe base_384 --train.initialise-from runs/base --nodes 4 --gpus-per-node 8`. The
    fine-tuning's values are not published; these are the field's usual ones (30 epochs, small constant-like rate, no
    mixing, whole-image evaluation).
    """
    return replace(
        base(),
        epochs=30.0,
        global_batch_size=512,
        model=ModelConfig(name="transxnet_b", image_size=384),
        mix=MixConfig(mixup=0.0, cutmix=0.0),
        augment=AugmentConfig(evaluation_crop=1.0),
        optimizer=OptimizerConfig(lr=5e-5, weight_decay=1e-8),
        schedule=ScheduleConfig(warmup_epochs=0.0, min_lr=5e-6, cooldown_epochs=0.0),
    )


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    "demo": demo,
    "tiny": tiny,
    "small": small,
    "base": base,
    "base_384": base_384,
}


def default_resources(recipe: str) -> Resources:
    """What a recipe asks of the cluster unless told: the demo two processes, the others one node."""
    return Resources(tasks_per_node=2) if recipe == "demo" else Resources()
