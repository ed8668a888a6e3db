"""Run directories as a training of a segmentation leaves them, made in seconds from random weights."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from pipeline.config.schema import DataConfig, MixConfig, ModelConfig, SegmentationConfig, TrainConfig
from pipeline.data.loader import build_evaluation_loader
from pipeline.tasks import find_task
from pipeline.weights.card import ModelCard, Preprocessing, save_model_card
from sharding import load_manifest
from tests.support.tracking_runs import START, append_event, config_json, write_checkpoint

TASK = find_task("segmentation")
STEPS = 30


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
    content = config_json(run_dir, config, tracking_uri)
    validation = load_manifest(str(shards), "validation")
    model = network(len(validation.classes))
    evaluator = TASK.evaluator(config.augment, len(validation.classes), torch.device("cpu"))
    with (
        torch.inference_mode(),
        build_evaluation_loader(
            config.data, config.augment, 32, world_size=1, rank=0, device="cpu", task="segmentation",
            segmentation=config.segmentation,
        ) as loader,
    ):  # fmt: skip
        for batch in loader:
            evaluator.add(model, batch)
    scores = evaluator.scores(evaluator.sums())
    append_event(run_dir, "start", 1, 0, step=0, world_size=1)
    with open(run_dir / "metrics.jsonl", "w", encoding="utf-8") as file:
        values = ", ".join(f'"{key}": {value}' for key, value in TASK.scores.record(scores).items())
        file.write(f'{{"step": {STEPS}, "time": {START + 9}, "attempt": 1, "loss": 1.0, "lr": 0.001, {values}}}\n')
    append_event(run_dir, "end", 1, 10, outcome="finished")
    write_checkpoint(run_dir, STEPS)
    card = ModelCard(
        name="semantic_fpn_n",
        task="segmentation",
        num_classes=len(validation.classes),
        image_size=32,
        classes=tuple((entry.wnid, entry.name) for entry in validation.classes),
        preprocessing=Preprocessing(mean=config.augment.mean, std=config.augment.std, **TASK.preprocessing(config)),
        step=STEPS,
        epoch=1.0,
        scores=scores,
        validation_samples=validation.num_samples,
        train_digest=load_manifest(str(shards), "train").digest,
        validation_digest=validation.digest,
        git_commit=content["git"]["commit"],
    )
    (run_dir / "export").mkdir()
    weights = {name: tensor.contiguous() for name, tensor in TASK.to_published(model.state_dict()).items()}
    save_file(weights, run_dir / "export/model.safetensors")
    save_model_card(card, run_dir / "export")
    return card
