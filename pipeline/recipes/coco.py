"""The paper's detections on COCO: RetinaNet and Mask R-CNN on TransXNet-T, -S and -B, upstream's 1x schedule."""

from dataclasses import replace

from pipeline.config.schema import (
    AugmentConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


def coco_retinanet_tiny() -> TrainConfig:
    """RetinaNet on TransXNet-T by upstream's recipe. Reported: box AP 43.1.

    `python -m pipeline.launch --recipe coco_retinanet_tiny --train.initialise-from runs/tiny --gpus-per-node 8`

    12 epochs of batches of 16, the learning rate a tenth from the 8th and again from the 11th on, weight decay on every
    parameter, no moving average. The backbone starts from the weights of ImageNet. The shards are packed with
    `--only-annotated`.
    """
    return TrainConfig(
        task="detection",
        epochs=12.0,
        global_batch_size=16,
        precision="fp32",
        ema_decay=0.0,
        save_every_steps=1000,
        model=ModelConfig(name="retinanet_t", drop_path_rate=0.1),
        augment=AugmentConfig(horizontal_flip=0.5),
        mix=MixConfig(mixup=0.0, cutmix=0.0),
        optimizer=OptimizerConfig(lr=1e-4, weight_decay=1e-4, decay="all"),
        schedule=ScheduleConfig(warmup_steps=500, warmup_ratio=0.001, cooldown_epochs=0.0, step_epochs=(8.0, 11.0)),
    )


def coco_retinanet_small() -> TrainConfig:
    """RetinaNet on TransXNet-S by upstream's recipe. Reported: box AP 46.4.

    `python -m pipeline.launch --recipe coco_retinanet_small --train.initialise-from runs/small --gpus-per-node 8`
    """
    return replace(coco_retinanet_tiny(), model=ModelConfig(name="retinanet_s", drop_path_rate=0.2))


def coco_retinanet_base() -> TrainConfig:
    """RetinaNet on TransXNet-B by upstream's recipe. Reported: box AP 47.6.

    `python -m pipeline.launch --recipe coco_retinanet_base --train.initialise-from runs/base --gpus-per-node 8`
    """
    return replace(coco_retinanet_tiny(), model=ModelConfig(name="retinanet_b", drop_path_rate=0.3))


def coco_mask_rcnn_tiny() -> TrainConfig:
    """Mask R-CNN on TransXNet-T by upstream's recipe. Reported: box AP 44.5, mask AP 40.7.

    `python -m pipeline.launch --recipe coco_mask_rcnn_tiny --train.initialise-from runs/tiny --gpus-per-node 8`

    As `coco_retinanet_tiny`, but with more weight decay, on parameters without `norm` in their names.
    """
    return replace(
        coco_retinanet_tiny(),
        model=ModelConfig(name="mask_rcnn_t", drop_path_rate=0.1),
        optimizer=OptimizerConfig(lr=1e-4, weight_decay=0.05, decay="not-norm"),
    )


def coco_mask_rcnn_small() -> TrainConfig:
    """Mask R-CNN on TransXNet-S by upstream's recipe. Reported: box AP 47.7, mask AP 43.1.

    `python -m pipeline.launch --recipe coco_mask_rcnn_small --train.initialise-from runs/small --gpus-per-node 8`
    """
    return replace(coco_mask_rcnn_tiny(), model=ModelConfig(name="mask_rcnn_s", drop_path_rate=0.2))


def coco_mask_rcnn_base() -> TrainConfig:
    """Mask R-CNN on TransXNet-B by upstream's recipe. Reported: box AP 48.8, mask AP 43.8.

    `python -m pipeline.launch --recipe coco_mask_rcnn_base --train.initialise-from runs/base --gpus-per-node 8`
    """
    return replace(coco_mask_rcnn_tiny(), model=ModelConfig(name="mask_rcnn_b", drop_path_rate=0.3))
