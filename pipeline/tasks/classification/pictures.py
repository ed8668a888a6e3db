"""The picture of a measured classifier."""

from pathlib import Path
from typing import Any

import numpy as np

NAMED_CLASSES = 40
"""Largest number of classes that the confusion picture names."""


def draw(
    path: Path,
    names: list[str],
    *,
    confusion: np.ndarray,
    class_accuracy: np.ndarray,
    bins: np.ndarray,
    top1: float,
    calibration_error: float,
) -> None:
    """Draw confusion, accuracy of the classes and calibration side by side into a PNG file.

    Args:
        path: of the file.
        names: name of each of C classes.
        confusion: number of images by label (row) and first guess (column): int64 `[C, C]`.
        class_accuracy: share of correct first guesses of each class: float64 `[C]`, NaN for a class without images.
        bins: sums of each bin of confidence: images, confidences, correct first guesses: float64 `[3, bins]`.
        top1: share of correct first guesses.
        calibration_error: mean gap between confidence and accuracy.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.8), layout="constrained")
    axes: Any = figure.subplots(1, 3)
    totals = np.maximum(confusion.sum(1, keepdims=True), 1)
    image = axes[0].imshow(confusion / totals, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes[0].set(title="Confusion", xlabel="first guess", ylabel="label")
    if len(names) <= NAMED_CLASSES:
        axes[0].set_xticks(range(len(names)), names, rotation=90)
        axes[0].set_yticks(range(len(names)), names)
    figure.colorbar(image, ax=axes[0], shrink=0.8, label="share of the label's images")
    axes[1].plot(np.sort(100 * class_accuracy[~np.isnan(class_accuracy)]), color="tab:blue")
    axes[1].axhline(100 * top1, color="tab:gray", linestyle="--", label=f"top-1 {100 * top1:.2f} %")
    axes[1].set(title="Accuracy of each class", xlabel="classes, weakest first", ylabel="%", ylim=(0, 101))
    axes[1].legend(loc="lower right")
    counts, confidence, correct = bins
    has_images = counts > 0
    axes[2].plot([0, 100], [0, 100], color="tab:gray", linestyle="--", label="perfect")
    axes[2].plot(
        100 * confidence[has_images] / counts[has_images],
        100 * correct[has_images] / counts[has_images],
        "o-",
        label="measured",
    )
    axes[2].bar((np.arange(len(counts)) + 0.5) * 100 / len(counts), 100 * counts / counts.sum(), width=5, alpha=0.2)
    title = f"Calibration (error {100 * calibration_error:.2f} %)"
    axes[2].set(title=title, xlabel="confidence %", ylabel="accuracy %, share of images %")
    axes[2].legend(loc="upper left")
    figure.savefig(path, dpi=110)
