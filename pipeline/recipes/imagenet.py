"""The paper's trainings on ImageNet-1K: TransXNet-T, -S and -B, and -B at 384 px."""

from dataclasses import replace

from pipeline.config.schema import (
    AugmentConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from pipeline.recipes.published import Published

PAPER = "reported by Lou et al., arXiv 2310.19380"
TINY = Published(result=f"TransXNet-T, 81.6 % top-1 on ImageNet-1K at 224 px, {PAPER}", value=0.816)
SMALL = Published(result=f"TransXNet-S, 83.8 % top-1 on ImageNet-1K at 224 px, {PAPER}", value=0.838)
BASE = Published(result=f"TransXNet-B, 84.6 % top-1 on ImageNet-1K at 224 px, {PAPER}", value=0.846)
BASE_384 = Published(
    result=f"TransXNet-B, 85.5 % top-1 on ImageNet-1K at 384 px, {PAPER}",
    value=0.855,
    unpublished="the values of the fine-tuning at 384 px are the field's usual ones: the paper publishes none",
)


def tiny() -> TrainConfig:
    """TransXNet-T by upstream's recipe. Reported: 81.6 % top-1.

    `python -m pipeline.launch --nodes 4 --gpus-per-node 8`
    """
    return TrainConfig()


def small() -> TrainConfig:
    """TransXNet-S by upstream's recipe. Reported: 83.8 % top-1.

    `python -m pipeline.launch --recipe small --nodes 4 --gpus-per-node 8`
    """
    return replace(tiny(), model=ModelConfig(name="transxnet_s"), ema_decay=0.99985)


def base() -> TrainConfig:
    """TransXNet-B by upstream's recipe. Reported: 84.6 % top-1.

    `python -m pipeline.launch --recipe base --nodes 4 --gpus-per-node 8`
    """
    return replace(
        tiny(),
        model=ModelConfig(name="transxnet_b"),
        ema_decay=0.99985,
        augment=AugmentConfig(evaluation_crop=0.95),
    )


def base_384() -> TrainConfig:
    """TransXNet-B fine-tuned at 384 px from a finished `base` run. Reported: 85.5 % top-1.

    `python -m pipeline.launch --recipe base_384 --train.initialise-from runs/base --nodes 4 --gpus-per-node 8`

    The paper does not publish the values of the fine-tuning. These are the field's usual ones: 30 epochs, a small and
    almost constant learning rate, no mixing, evaluation on the whole image.
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
