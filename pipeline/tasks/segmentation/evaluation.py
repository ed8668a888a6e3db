"""Mean intersection over union, exactly: int64 counts of pixels, summed over batches and ranks, divided at the end."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.common.errors import InputError
from pipeline.config.schema import AugmentConfig
from pipeline.tasks.batch import Batch
from pipeline.tasks.normalise import Normalise
from pipeline.tasks.segmentation.picture import Shown, draw

SHOWN = 6
"""Number of images that are drawn."""


def count_pixels(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Count pixels by class and prediction: int64 [C, C], rows are the truth; labels from C on are not counted.

    Args:
        predicted: class of each pixel, int64 of any shape.
        labels: true class of each pixel, integers of the same shape.
        num_classes: number C of classes.
    """
    labels = labels.long()
    counted = labels < num_classes
    pairs = labels[counted] * num_classes + predicted[counted]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def class_scores(confusion: Tensor) -> tuple[Tensor, Tensor]:
    """Return intersection over union and accuracy of each class, float64 [C]; NaN for a class that does not occur.

    A class occurs in the first if it is in truth or prediction, in the second if it is in the truth.
    """
    confusion = confusion.double()
    right, truth, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return right / (truth + predicted - right), right / truth


def total_scores(confusion: Tensor) -> dict[str, float]:
    """Return the scores of a segmentation, given the counts over all images.

    Raises:
        InputError: no pixel was counted.
    """
    if not int(confusion.sum()):
        raise InputError("nothing was evaluated: the validation split has no pixel of a class")
    iou, accuracy = class_scores(confusion)
    return {
        "miou": float(iou.nanmean()),
        "aacc": float(confusion.diagonal().double().sum() / confusion.double().sum()),
        "macc": float(accuracy.nanmean()),
    }


def predict(network: nn.Module, images: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the class of each pixel, int64 [N, *size], of normalised images [N, 3, H, W].

    As upstream: logits are resized to the network's input, and from there to the size of the image.
    """
    from transxnet.dense import resize_logits

    logits: Any = network(images)
    return resize_logits(resize_logits(logits.float(), tuple(images.shape[-2:])), size).argmax(1)


class ConfusionEvaluator:
    """Evaluates a network on whole images (`pipeline.tasks.task.Evaluator`)."""

    is_gathered = False

    def __init__(self, augment: AugmentConfig, num_classes: int, device: torch.device) -> None:
        """Begin with no pixel counted."""
        self._normalise, self._num_classes, self._device = Normalise(augment), num_classes, device
        self._shown: list[Shown] = []
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def add(self, network: nn.Module, batch: Batch) -> None:
        """Count the pixels of a batch."""
        labels = batch.labels.to(self._device)
        images = self._normalise(batch.images, self._device)
        predicted = predict(network, images, (labels.shape[1], labels.shape[2]))
        self.confusion += count_pixels(predicted, labels, self._num_classes)
        for position in range(min(len(labels), SHOWN - len(self._shown))):
            self._shown.append(
                Shown(
                    # The loader reuses the memory of a batch.
                    batch.images[position].permute(1, 2, 0).to("cpu", copy=True).numpy(),
                    batch.labels[position].to("cpu", copy=True).numpy(),
                    predicted[position].to("cpu", torch.uint8).numpy(),
                )
            )

    def sums(self) -> list[float]:
        """Return the counts of this rank; float64 holds them exactly below 2^53 pixels."""
        return self.confusion.flatten().double().tolist()

    def scores(self, sums: list[float]) -> dict[str, float]:
        """Divide the counts of all ranks."""
        return total_scores(self._counts(sums))

    def suspicion(self, sums: list[float]) -> str | None:
        """Return nothing: pixels of a few large classes make every share possible."""
        return None

    def classes(self, sums: list[float]) -> dict[str, list[float]]:
        """Return intersection over union and accuracy of each class."""
        iou, accuracy = class_scores(self._counts(sums))
        return {"IoU": iou.tolist(), "accuracy": accuracy.tolist()}

    def draw(self, folder: Path, names: list[str]) -> None:
        """Draw this rank's first images beside truth and prediction into `samples.png`."""
        draw(folder / "samples.png", self._shown, names)

    def _counts(self, sums: list[float]) -> Tensor:
        return torch.tensor(sums, dtype=torch.float64).long().view(self._num_classes, self._num_classes)
