"""The paper's segmentations on ADE20K: Semantic FPN on TransXNet-T, -S and -B."""

from dataclasses import replace

from pipeline.config.schema import (
    AugmentConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


def ade20k_tiny() -> TrainConfig:
    """Semantic FPN on TransXNet-T by upstream's recipe. Reported: mIoU 45.5.

    `python -m pipeline.launch --recipe ade20k_tiny --train.initialise-from runs/tiny --nodes 1 --gpus-per-node 8`

    80,000 steps of 32 crops of 512 x 512, weight decay on every parameter, a warm-up that multiplies the cosine, no
    moving average. The backbone starts from the weights of ImageNet.
    """
    return TrainConfig(
        task="segmentation",
        steps=80_000,
        global_batch_size=32,
        precision="fp32",
        ema_decay=0.0,
        save_every_steps=1000,
        eval_every_steps=4000,
        model=ModelConfig(name="semantic_fpn_t", drop_path_rate=0.1),
        augment=AugmentConfig(horizontal_flip=0.5),
        mix=MixConfig(mixup=0.0, cutmix=0.0),
        optimizer=OptimizerConfig(lr=2e-4, weight_decay=1e-4, decay="all"),
        schedule=ScheduleConfig(warmup_steps=1000, warmup_ratio=0.1, min_lr=2e-12, cooldown_epochs=0.0),
    )


def ade20k_small() -> TrainConfig:
    """Semantic FPN on TransXNet-S by upstream's recipe. Reported: mIoU 48.5.

    `python -m pipeline.launch --recipe ade20k_small --train.initialise-from runs/small --nodes 1 --gpus-per-node 8`
    """
    return replace(ade20k_tiny(), model=ModelConfig(name="semantic_fpn_s", drop_path_rate=0.2))


def ade20k_base() -> TrainConfig:
    """Semantic FPN on TransXNet-B by upstream's recipe. Reported: mIoU 49.9.

    `python -m pipeline.launch --recipe ade20k_base --train.initialise-from runs/base --nodes 1 --gpus-per-node 8`
    """
    return replace(ade20k_tiny(), model=ModelConfig(name="semantic_fpn_b", drop_path_rate=0.3))
