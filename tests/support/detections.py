"""Small trainings of detections, and run directories as they leave them, made in seconds from random weights."""

from pathlib import Path

import torch

from pipeline.config.schema import DataConfig, DetectionConfig, MixConfig, ModelConfig, TrainConfig
from pipeline.tasks import find_task
from pipeline.weights.card import ModelCard
from sharding import load_manifest
from tests.support.finished_tasks import STEPS, finished_task

TASK = find_task("detection")


def training(shards: Path | str, cache: Path, workers: int = 0, **fields: object) -> TrainConfig:
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


def network(name: str, num_classes: int, seed: int = 0) -> torch.nn.Module:
    """Return a network whose scores differ between boxes and classes, so that it finds something."""
    torch.manual_seed(seed)
    model = TASK.build(name, num_classes=num_classes, image_size=32, backend="reference").eval()
    head = "box_head" if name.startswith("mask") else "head"
    classifier = model.get_submodule(f"{head}.class_logits")
    torch.nn.init.normal_(classifier.weight, std=0.3)  # pyright: ignore[reportArgumentType]
    torch.nn.init.zeros_(classifier.bias)  # pyright: ignore[reportArgumentType]
    return model


def finished_detection(run_dir: Path, shards: Path, tracking_uri: str | None, **fields: object) -> ModelCard:
    """Write a run that has trained, evaluated and exported, without an MLflow run; return its model card."""
    config = training(shards, run_dir.parent / "cache", steps=STEPS, **fields)
    model = network(config.model.name, len(load_manifest(str(shards), "validation").classes))
    return finished_task(run_dir, config, model, tracking_uri)
