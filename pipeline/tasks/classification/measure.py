"""Measures a classifier in detail: accuracy, confusion of the classes, calibration."""

from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.config.schema import AugmentConfig
from pipeline.tasks.batch import Batch
from pipeline.tasks.classification.accuracy import COUNTS, Evaluation, count_batch
from pipeline.tasks.classification.classes import ClassMap
from pipeline.tasks.classification.report import ClassifierReport
from pipeline.tasks.normalise import Normalise

BINS = 15
"""Bins of equal width that the confidences are sorted into for the calibration error."""


class ClassifierMeasurement:
    """Sums over batches, kept on the model's device until `result` reads them (`pipeline.tasks.report.Measurement`)."""

    def __init__(self, matched: ClassMap, augment: AugmentConfig, device: torch.device | str) -> None:
        """Take the classes that take part, and the normalisation of `augment`."""
        self._matched, self._normalise, self._device = matched, Normalise(augment), torch.device(device)
        self._outputs = torch.tensor(matched.outputs, device=device)
        self._labels = torch.tensor(matched.labels, device=device)
        self._num_classes = len(matched.outputs)
        self._counts = torch.zeros(len(COUNTS), dtype=torch.float64, device=device)
        self._confusion = torch.zeros(self._num_classes**2, dtype=torch.int64, device=device)
        self._bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)

    def add(self, network: nn.Module, batch: Batch) -> None:
        """Measure a batch."""
        logits = network(self._normalise(batch.images, self._device))
        self.count(logits.index_select(1, self._outputs), self._labels[batch.labels.to(self._device)])

    def count(self, logits: Tensor, labels: Tensor) -> None:
        """Count the answers of a batch.

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

    def result(self, seconds: float) -> ClassifierReport:
        """Return the result over all batches; `seconds` is the time that the pass took.

        Raises:
            InputError: no image was counted.
        """
        evaluation = Evaluation.from_counts(self._counts)
        bins = self._bins.cpu().numpy()
        _, confidence_sums, correct = bins
        return ClassifierReport(
            **asdict(evaluation),
            calibration_error=float(np.abs(confidence_sums - correct).sum() / evaluation.samples),
            images_per_s=evaluation.samples / seconds,
            confusion=self._confusion.view(self._num_classes, self._num_classes).cpu().numpy(),
            bins=bins,
            matched=self._matched,
        )
