"""Small trainings of detections."""

from pathlib import Path

from pipeline.config.schema import DataConfig, DetectionConfig, MixConfig, ModelConfig, TrainConfig


def training(shards: Path, cache: Path, workers: int = 0, **fields: object) -> TrainConfig:
    """Return a training of `mask_rcnn_n` on small images, in micro-batches of two."""
    settings = {
        "task": "detection",
        "seed": 3,
        "steps": 4,
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "precision": "fp32",
        "batch_norm": "local",
        "model": ModelConfig(name="mask_rcnn_n", image_size=32),
        "mix": MixConfig(mixup=0.0, cutmix=0.0),
        "detection": DetectionConfig(scale=(96, 64), target_kb=64),
        "data": DataConfig(shards=str(shards), workers=workers, lanes=2, cache_dir=str(cache)),
    }
    return TrainConfig(**(settings | fields))  # pyright: ignore[reportArgumentType]
