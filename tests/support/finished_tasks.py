"""Run directories as a training of a segmentation or a detection leaves them, made in seconds from given weights."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.config.schema import TrainConfig
from pipeline.data.loader import build_evaluation_loader
from pipeline.run.report import write_evaluation
from pipeline.tasks import find_task
from pipeline.weights.card import ModelCard, Preprocessing, save_model_card
from sharding import load_manifest
from tests.support.tracking_runs import START, append_event, config_json, write_checkpoint

STEPS = 30


def finished_task(run_dir: Path, config: TrainConfig, model: nn.Module, tracking_uri: str | None) -> ModelCard:
    """Write a run that has trained, evaluated and exported a network, without an MLflow run; return its model card."""
    task, shards = find_task(config.task), config.data.shards
    content = config_json(run_dir, config, tracking_uri)
    validation = load_manifest(shards, "validation")
    evaluator = task.evaluator(config.augment, len(validation.classes), torch.device("cpu"))
    with (
        torch.inference_mode(),
        build_evaluation_loader(
            config.data,
            config.augment,
            config.model.image_size,
            world_size=1,
            rank=0,
            device="cpu",
            task=config.task,
            segmentation=config.segmentation,
            detection=config.detection,
            model=config.model.name,
        ) as loader,
    ):
        for batch in loader:
            evaluator.add(model, batch)
    sums = evaluator.sums()
    scores = evaluator.scores(sums)
    append_event(run_dir, "start", 1, 0, step=0, world_size=1)
    with open(run_dir / "metrics.jsonl", "w", encoding="utf-8") as file:
        values = ", ".join(f'"{key}": {value}' for key, value in task.scores.record(scores).items())
        file.write(f'{{"step": {STEPS}, "time": {START + 9}, "attempt": 1, "loss": 1.0, "lr": 0.001, {values}}}\n')
    append_event(run_dir, "end", 1, 10, outcome="finished")
    write_evaluation(run_dir, STEPS, [entry.name for entry in validation.classes], evaluator.classes(sums))
    write_checkpoint(run_dir, STEPS)
    card = ModelCard(
        name=config.model.name,
        task=config.task,
        num_classes=len(validation.classes),
        image_size=config.model.image_size,
        classes=tuple((entry.wnid, entry.name) for entry in validation.classes),
        preprocessing=Preprocessing(mean=config.augment.mean, std=config.augment.std, **task.preprocessing(config)),
        step=STEPS,
        epoch=1.0,
        scores=scores,
        validation_samples=validation.num_samples,
        train_digest=load_manifest(shards, "train").digest,
        validation_digest=validation.digest,
        git_commit=content["git"]["commit"],
    )
    (run_dir / "export").mkdir()
    weights = {name: tensor.contiguous() for name, tensor in task.to_published(model.state_dict()).items()}
    save_file(weights, run_dir / "export/model.safetensors")
    save_model_card(card, run_dir / "export")
    return card
