"""A training on images of one's own, which starts from published weights."""

from dataclasses import replace

from pipeline.config.schema import MixConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from pipeline.recipes.imagenet import tiny


def fine_tune() -> TrainConfig:
    """TransXNet-T on hundreds or thousands of images, from weights of ImageNet. No published result.

    `python -m pipeline.launch --recipe fine_tune --train.data.shards shards --train.initialise-from transx-t.pth.tar`

    The values are the field's usual ones for fine-tuning: a small learning rate that falls from the classifier down to
    the stem, little mixing, and a moving average over some thirty steps, since the training is short.
    """
    return replace(
        tiny(),
        epochs=20.0,
        global_batch_size=32,
        ema_decay=0.97,
        log_every_steps=5,
        mix=MixConfig(mixup=0.2, cutmix=0.0),
        optimizer=OptimizerConfig(lr=2e-4, layer_decay=0.8),
        schedule=ScheduleConfig(warmup_epochs=2.0, min_lr=1e-6, cooldown_epochs=0.0),
    )
