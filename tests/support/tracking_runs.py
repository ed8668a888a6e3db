"""Run directories as a training leaves them, made in seconds from the digits and a fitted classifier."""

import functools
import hashlib
import io
import json
import math
import os
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import transxnet
from pipeline.common.atomic import replacing
from pipeline.config.schema import AugmentConfig, DataConfig, ModelConfig, TrainConfig
from pipeline.config.serialise import digest, to_dict
from pipeline.recipes.digits import prepare_digits
from pipeline.register.verify import sample_images
from pipeline.tasks.classification.accuracy import Evaluation, evaluate_batches
from pipeline.tracking.client import local_database, open_client, resolve_tracking_uri
from pipeline.weights.card import ModelCard, Preprocessing, save_model_card
from sharding import load_manifest
from tests.support import REPOSITORY

START = 1_700_000_000.0

# Tests must not use the developer's tracking server.
os.environ.pop("MLFLOW_TRACKING_URI", None)


@functools.cache
def _empty_database() -> bytes:
    """A new database, made once for all workers and later runs of the tests."""
    kept = REPOSITORY / f".pytest_cache/mlflow-{version('mlflow')}.db"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as name:
            uri = resolve_tracking_uri(name)
            open_client(uri).search_experiments()
            kept.parent.mkdir(exist_ok=True)
            with replacing(kept) as path:
                path.write_bytes(local_database(uri).read_bytes())
    return kept.read_bytes()


def new_store(folder: Path) -> str:
    """URI of a new database below `folder`, copied because MLflow takes seconds to create one."""
    uri = resolve_tracking_uri(folder)
    path = local_database(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_empty_database())
    return uri


def config_json(run_dir: Path, config: TrainConfig, tracking_uri: str | None) -> dict:
    content = {
        "train": to_dict(config),
        "digest": digest(config),
        "git": {"commit": "c0ffee0123456789", "dirty": False},
        "tracking_uri": tracking_uri,
        "resources": {"nodes": 1},
        "command": "python -m pipeline.launch --recipe demo",
        "published": {
            "result": "81.6 % top-1",
            "value": 0.816,
            "differences": ["bf16 instead of fp16", "another seed"],
        },
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.json").write_text(json.dumps(content))
    return content


def append_records(
    run_dir: Path, steps: range, *, attempt: int = 1, eval_every: int = 10, start: float = START
) -> None:
    with open(run_dir / "metrics.jsonl", "a", encoding="utf-8") as file:
        for step in steps:
            record = {"step": step, "time": start + step, "attempt": attempt, "loss": 3 / math.sqrt(step), "lr": 1e-3}
            record |= {"grad_norm": 1.0, "images_per_s": 100.0 + step % 7, "data_wait": 0.01, "epoch": step / 10}
            if step % eval_every == 0:
                record |= {"eval_top1": min(0.99, step / 50), "eval_top5": 0.999, "eval_loss": 1 / step}
            file.write(json.dumps(record) + "\n")


def append_event(run_dir: Path, kind: str, attempt: int, at: float, **fields) -> None:
    with open(run_dir / "attempts.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"event": kind, "attempt": attempt, "time": START + at, **fields}) + "\n")


def write_checkpoint(run_dir: Path, step: int) -> None:
    folder = run_dir / f"checkpoints/step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "state.bin").write_bytes(b"state of the optimizer")
    (folder / "manifest.json").write_text(json.dumps({"step": step, "world_size": 2}))


def write_averaged_checkpoint(run_dir: Path, step: int, state: dict[str, torch.Tensor]) -> None:
    """Write averaged weights as a checkpoint of two ranks, each with half of a weight and its own statistics."""
    folder = run_dir / f"checkpoints/step_{step:08d}"
    folder.mkdir(parents=True)
    files = {}
    for rank in range(2):
        tensors = {}
        for name, value in state.items():
            flat = value.flatten()
            if value.is_floating_point() and "running_" in name:
                tensors[f"ema_buffer|{name}|0"] = flat * (0.5 if rank == 0 else 1.5)
            elif not value.is_floating_point():
                tensors[f"buffer|{name}|0"] = flat
            elif (piece := flat[: len(flat) // 2] if rank == 0 else flat[len(flat) // 2 :]).numel():
                tensors[f"ema|{name}|{rank * (len(flat) // 2)}"] = piece.clone()
        path = folder / f"rank_{rank:05d}.safetensors"
        save_file(tensors, path)
        files[path.name] = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
    manifest = {"schema": 1, "step": step, "world_size": 2, "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def set_evaluations(run_dir: Path, results: dict[int, Evaluation]) -> None:
    """Write evaluation results into the journal."""
    path = run_dir / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["step"] in results:
            result = results[record["step"]]
            record |= {"eval_top1": result.top1, "eval_top5": result.top5, "eval_loss": result.loss}
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@dataclass(frozen=True)
class Pixels:
    images: torch.Tensor
    labels: torch.Tensor


@functools.cache
def digits_network(shards: Path, seed: int = 0) -> tuple[dict[str, torch.Tensor], Evaluation]:
    """A `transxnet_n` with random features and a classifier fitted to the digits, and its exact accuracy."""
    from sklearn.linear_model import RidgeClassifier

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    network = transxnet.transxnet_n(num_classes=10, image_size=32, backend="reference").train()
    x, y = _pixels(shards, "train", 512)
    with torch.no_grad():
        for part in x[:192].split(64):
            network(part)
        network.eval()
        maps = [network.forward_features(part)[-1] for part in x.split(256)]
        pooled = torch.cat([network.classifier.norm(m).mean((2, 3)) for m in maps])
        fitted = RidgeClassifier(alpha=1e-2).fit(pooled.numpy(), y.numpy())
        network.classifier.linear.weight.copy_(torch.from_numpy(fitted.coef_)[:, :, None, None] * 10)
        network.classifier.linear.bias.copy_(torch.from_numpy(fitted.intercept_) * 10)
    return transxnet.to_upstream(network.state_dict()), _evaluated(network, shards)


@functools.cache
def worse_network(shards: Path, seed: int = 0) -> tuple[dict[str, torch.Tensor], Evaluation]:
    """The same network with a bias that never lets it predict the first class."""
    weights = {name: value.clone() for name, value in digits_network(shards, seed)[0].items()}
    weights["classifier.2.bias"][0] -= 1000
    network = transxnet.transxnet_n(num_classes=10, image_size=32, backend="reference").eval()
    network.load_state_dict(transxnet.from_upstream(weights))
    return weights, _evaluated(network, shards)


def _evaluated(network: torch.nn.Module, shards: Path) -> Evaluation:
    counts = evaluate_batches(
        network,
        [Pixels(*_pixels(shards, "validation"))],
        num_classes=10,
        device="cpu",
        autocast=nullcontext(),
        normalise=lambda batch, device: batch.images.to(device),
    )
    return Evaluation.from_counts(counts)


def finished_run(
    run_dir: Path, shards: Path, tracking_uri: str | None, *, seed: int = 0, best_step: int | None = None
) -> ModelCard:
    """Write a run that has trained 30 steps, evaluated and exported, without an MLflow run; returns its model card.

    With `best_step` the run was better at that step, which has a checkpoint, than at its end.
    """
    prepare_digits(shards)
    config = TrainConfig(
        seed=seed,
        steps=30,
        global_batch_size=64,
        model=ModelConfig(name="transxnet_n", image_size=32),
        data=DataConfig(shards=str(shards)),
        augment=AugmentConfig(evaluation_crop=1.0),
    )
    content = config_json(run_dir, config, tracking_uri)
    weights, result = digits_network(shards, seed)
    append_records(run_dir, range(1, 31))
    write_checkpoint(run_dir, 30)
    if best_step is not None:
        write_averaged_checkpoint(run_dir, best_step, transxnet.from_upstream(weights))
        best, (weights, result) = result, worse_network(shards, seed)
        set_evaluations(run_dir, {best_step: best, 30: result})
    validation = load_manifest(str(shards), "validation")
    card = ModelCard(
        name="transxnet_n",
        num_classes=10,
        image_size=32,
        classes=tuple((entry.wnid, entry.name) for entry in validation.classes),
        preprocessing=Preprocessing(evaluation_crop=1.0, mean=config.augment.mean, std=config.augment.std),
        step=30,
        epoch=1.3,
        scores=result.scores(),
        validation_samples=result.samples,
        train_digest=load_manifest(str(shards), "train").digest,
        validation_digest=validation.digest,
        git_commit=content["git"]["commit"],
    )
    (run_dir / "export").mkdir()
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, run_dir / "export/model.safetensors")
    save_model_card(card, run_dir / "export")
    return card


def validation_images(shards: Path, count: int) -> list[tuple[bytes, str]]:
    data = DataConfig(shards=str(shards))
    return sample_images(data.validation_location, data.validation_split, count=count)[1]


def _pixels(shards: Path, split: str, count: int = 10**6) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of a split as normalised images `[N, 3, 32, 32]` and labels `[N]`."""
    data = DataConfig(shards=str(shards), validation_split=split)
    manifest = load_manifest(str(shards), split)
    labels = {entry.wnid: k for k, entry in enumerate(manifest.classes)}
    _, images = sample_images(data.validation_location, data.validation_split, count=min(count, manifest.num_samples))
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), np.float32) for image, _ in images])
    settings = AugmentConfig()
    pixels = (pixels / 255 - np.float32(settings.mean)) / np.float32(settings.std)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor([labels[w] for _, w in images])
