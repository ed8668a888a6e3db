"""Run directories as a training of a segmentation leaves them, made in seconds from random weights."""

from pathlib import Path

import torch

from pipeline.config.schema import DataConfig, MixConfig, ModelConfig, SegmentationConfig, TrainConfig
from pipeline.tasks import find_task
from pipeline.weights.card import ModelCard
from sharding import load_manifest
from tests.support.finished_tasks import STEPS, finished_task

TASK = find_task("segmentation")


def training(shards: Path | str, cache: Path | None = None, **fields: object) -> TrainConfig:
    """Return a training of `semantic_fpn_n` on small images."""
    data = DataConfig(shards=str(shards), workers=0, lanes=2, cache_dir=None if cache is None else str(cache))
    settings = {
        "task": "segmentation",
        "steps": STEPS,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "precision": "fp32",
        "batch_norm": "local",
        "model": ModelConfig(name="semantic_fpn_n", image_size=32),
        "mix": MixConfig(mixup=0.0, cutmix=0.0),
        "segmentation": SegmentationConfig(crop_size=32, scale=(96, 64)),
        "data": data,
    }
    return TrainConfig(**(settings | fields))  # pyright: ignore[reportArgumentType]


def network(num_classes: int, seed: int = 0) -> torch.nn.Module:
    """A network that tells pixels of an image apart."""
    torch.manual_seed(seed)
    model = TASK.build("semantic_fpn_n", num_classes=num_classes, image_size=32, backend="reference").eval()
    torch.nn.init.normal_(model.get_submodule("head.classifier").weight)
    return model


def finished_segmentation(run_dir: Path, shards: Path, tracking_uri: str | None, **fields: object) -> ModelCard:
    """Write a run that has trained, evaluated and exported, without an MLflow run; return its model card."""
    config = training(shards, **fields)
    return finished_task(run_dir, config, network(len(load_manifest(str(shards), "validation").classes)), tracking_uri)
