"""One pass of a model of any task over a split: the scores of its task, overall and for each class."""

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

import torch

from pipeline.config.schema import AugmentConfig, ConfigError, DataConfig, SegmentationConfig
from pipeline.data.loader import build_evaluation_loader
from pipeline.evaluate.progress import with_progress
from sharding import load_manifest

if TYPE_CHECKING:
    from pipeline.tasks import Scores
    from pipeline.weights.load import LoadedModel
    from sharding import Manifest

LISTED = 150
"""Greatest number of classes that are printed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreReport:
    """The scores of a model on a split."""

    values: dict[str, float]
    """Scores of the task by name."""
    classes: dict[str, list[float]]
    """What is measured of each class, by its name in texts; NaN for a class that does not occur."""
    class_names: list[str]
    """Name of each class."""
    samples: int
    """Number of images."""
    images_per_s: float
    """Throughput, loading included."""

    def scalars(self) -> dict[str, float]:
        """Return every single number by its name in MLflow and in JSON."""
        return {**self.values, "images_per_s": self.images_per_s, "samples": float(self.samples)}

    def as_json(self) -> dict[str, Any]:
        """Return all results as plain values."""
        table = [
            {"name": name, **{key: None if math.isnan(row[k]) else row[k] for key, row in self.classes.items()}}
            for k, name in enumerate(self.class_names)
        ]
        return {**self.scalars(), "classes": table}

    def lines(self, title: str, scores: "Scores") -> list[str]:
        """Return the result in lines: the scores, and a row for each class."""
        lines = [f"{title}, {self.samples:,} images"]
        for score in scores.shares:
            lines.append(f"  {score.label:<18} {100 * self.values[score.name]:.2f} %")
        lines.append(f"  {'throughput':<18} {self.images_per_s:,.1f} images/s, loading included")
        if self.classes:
            width = max(len(name) for name in self.class_names[:LISTED])
            lines.append(f"  {'class':<{width}}  " + "  ".join(f"{name:>9}" for name in self.classes))
            for k, name in enumerate(self.class_names[:LISTED]):
                cells = (
                    f"{'-' if math.isnan(row[k]) else f'{100 * row[k]:.2f} %':>9}" for row in self.classes.values()
                )
                lines.append(f"  {name:<{width}}  " + "  ".join(cells))
        return lines


def evaluate_scores(
    model: "LoadedModel", shards: str, split: str, *, data_name: str | None, precision: str, workers: int
) -> "tuple[ScoreReport, Manifest]":
    """Measure a model on every image of a split; the progress is printed to stderr.

    Args:
        model: the network and its card.
        shards: folder or URI with the split's manifest.
        split: name of the split.
        data_name: which data set, where the folder holds several; None: the only one.
        precision: arithmetic of the forward, `fp32` or `bf16`.
        workers: loader processes; 0 loads in this process.

    Raises:
        ConfigError: the split is of another task, or has other classes.
        sharding.ShardingError: the shards are missing or incomplete.
    """
    manifest, card = load_manifest(shards, split, data_name), model.card
    names = [name for _, name in card.classes]
    if manifest.task != card.task:
        raise ConfigError(f"{manifest.stem} was packed for {manifest.task}, and {card.name} has learned {card.task}")
    if [entry.name for entry in manifest.classes] != names:
        raise ConfigError(
            f"{manifest.stem} has {len(manifest.classes)} classes that are not the {len(names)} of {card.name}: it can "
            "be measured only on the classes that it was trained on"
        )
    preprocessing = card.preprocessing
    augment = AugmentConfig(mean=preprocessing.mean, std=preprocessing.std)
    options = SegmentationConfig()
    if preprocessing.scale is not None and preprocessing.divisor is not None:
        options = SegmentationConfig(scale=preprocessing.scale, divisor=preprocessing.divisor)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = model.network.to(device)
    evaluator = card.of_task.evaluator(augment, card.num_classes, device)
    data = DataConfig(shards=shards, validation_split=split, name=data_name, workers=workers)
    started = time.monotonic()
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        build_evaluation_loader(
            data,
            augment,
            card.image_size,
            world_size=1,
            rank=0,
            device=device,
            task=card.task,
            segmentation=options,
        ) as loader,
    ):
        for batch in with_progress(loader, manifest.num_samples):
            evaluator.add(network, batch)
    sums = evaluator.sums()
    report = ScoreReport(
        values=evaluator.scores(sums),
        classes=evaluator.classes(sums),
        class_names=names,
        samples=manifest.num_samples,
        images_per_s=manifest.num_samples / (time.monotonic() - started),
    )
    return report, manifest
