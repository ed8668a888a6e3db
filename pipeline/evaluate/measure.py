"""One pass of a model over a split: accuracy, confusion of the classes, calibration and throughput."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.config.checks import check_ranges
from pipeline.config.schema import AugmentConfig, DataConfig
from pipeline.config.serialise import flatten, to_dict
from pipeline.data.loader import build_evaluation_loader
from pipeline.evaluate.classes import ClassMap, match_classes
from pipeline.evaluate.progress import with_progress
from pipeline.evaluate.report import Report
from pipeline.tasks.classification.accuracy import COUNTS, Evaluation, count_batch
from pipeline.tasks.normalise import Normalise
from sharding import load_manifest

if TYPE_CHECKING:
    from pipeline.weights.load import LoadedModel
    from sharding import Manifest


BINS = 15
"""Bins of equal width that the confidences are sorted into for the calibration error."""


def evaluate(
    model: "LoadedModel",
    shards: str,
    split: str = "validation",
    *,
    data_name: str | None = None,
    subset: bool = False,
    precision: Literal["fp32", "bf16"] = "fp32",
    workers: int = 2,
) -> "tuple[Report, ClassMap, Manifest]":
    """Measure a model on every image of a split; the progress is printed to stderr.

    Args:
        model: the network and its card.
        shards: folder or URI with the split's manifest.
        split: name of the split.
        data_name: which data set, where the folder holds several; None: the only one.
        subset: let only the split's own classes compete (see `match_classes`).
        precision: arithmetic of the forward.
        workers: loader processes; 0 loads in this process.

    Returns:
        The result, the classes that took part, and the split's manifest.

    Raises:
        ConfigError: the classes do not fit, or a setting is out of range.
        sharding.ShardingError: the shards are missing or incomplete.
    """
    manifest = load_manifest(shards, split, data_name)
    matched = match_classes(model.card, manifest, subset=subset)
    preprocessing, image_size = model.card.preprocessing, model.card.image_size
    data = DataConfig(shards=shards, validation_split=split, name=data_name, workers=workers)
    augment = AugmentConfig(
        evaluation_crop=preprocessing.evaluation_crop, mean=preprocessing.mean, std=preprocessing.std
    )
    check_ranges(flatten({"data": to_dict(data), "augment": to_dict(augment), "model": {"image_size": image_size}}))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, normalise = model.network.to(device), Normalise(augment)
    outputs = torch.tensor(matched.outputs, device=device)
    labels = torch.tensor(matched.labels, device=device)
    measurement = Measurement(len(matched.outputs), device)
    started = time.monotonic()
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        build_evaluation_loader(data, augment, image_size, world_size=1, rank=0, device=device) as loader,
    ):
        for batch in with_progress(loader, manifest.num_samples):
            logits = network(normalise(batch.images, device))
            measurement.add(logits.index_select(1, outputs), labels[batch.labels.to(device)])
    return measurement.result(time.monotonic() - started), matched, manifest


class Measurement:
    """Sums over batches, kept on the model's device until `result` reads them."""

    def __init__(self, num_classes: int, device: torch.device | str) -> None:
        self._num_classes = num_classes
        self._counts = torch.zeros(len(COUNTS), dtype=torch.float64, device=device)
        self._confusion = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=device)
        self._bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch.

        Args:
            logits: scores `[N, C]`.
            labels: classes `[N]`, int64, within `[0, C)`.
        """
        self._counts += count_batch(logits, labels)
        confidences, guesses = logits.float().softmax(1).max(1)
        self._confusion += torch.bincount(labels * self._num_classes + guesses, minlength=self._num_classes**2)
        index = (confidences * BINS).long().clamp(0, BINS - 1)
        for row, values in enumerate((torch.ones_like(confidences), confidences, (guesses == labels).float())):
            self._bins[row].index_add_(0, index, values.double())

    def result(self, seconds: float) -> Report:
        """Return the result over all batches; `seconds` is the time that the pass took.

        Raises:
            InputError: no image was counted.
        """
        evaluation = Evaluation.from_counts(self._counts)
        bins = self._bins.cpu().numpy()
        _, confidence_sums, correct = bins
        return Report(
            **asdict(evaluation),
            calibration_error=float(np.abs(confidence_sums - correct).sum() / evaluation.samples),
            images_per_s=evaluation.samples / seconds,
            confusion=self._confusion.view(self._num_classes, self._num_classes).cpu().numpy(),
            bins=bins,
        )
