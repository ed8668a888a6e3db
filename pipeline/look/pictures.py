"""Draws maps over images, receptive fields and kernels, as figures of matplotlib."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
CELL = 2.1
"""Side of an image in a figure, in inches."""
CHANNELS = 4
"""Kernels of each stage."""
BESIDE = 2
"""Stages whose kernels are beside each other; those of the next are below."""
SIDE = 480
"""Longest side of an image beside its answer, in pixels."""
GAP = 6
EVEN = 3
"""Multiple of an even attention that is drawn as the strongest, if none is stronger."""
FIRST_STRIDE = 4
"""Pixels between the positions of the first stage's map; each further stage doubles it."""
TITLE = {"fontsize": 9}
TITLE_HEIGHT = 0.22
"""Room for a title, in inches."""


def grad_cam(images: Sequence[Pixels], columns: Sequence[tuple[Sequence[str], NDArray[np.float32]]]) -> Figure:
    """Draw a row for each image: the image, and a map over it for each of its classes.

    Args:
        images: uint8 [S, S, 3] each.
        columns: for each class of an image, the titles of all images, and their maps float32 [N, h, w] in [0, 1].
    """
    figure, axes = _grid(len(images), 1 + len(columns))
    for row, image in enumerate(images):
        axes[row, 0].imshow(image)
        for column, (titles, maps) in enumerate(columns, 1):
            _overlay(axes[row, column], image, maps[row], 1.0)
            axes[row, column].set_title(titles[row], **TITLE)
    return figure


def attention(images: Sequence[Pixels], stages: Sequence[NDArray[np.float32]], position: tuple[float, float]) -> Figure:
    """Draw a row for each image: the marked image, and each stage's attention over it.

    Args:
        images: uint8 [S, S, 3] each.
        stages: shares of the attention, float32 [N, h, w] for each stage.
        position: x and y of the query, as shares of the image.
    """
    figure, axes = _grid(len(images), 1 + len(stages))
    for row, image in enumerate(images):
        side = len(image)
        axes[row, 0].imshow(image)
        for column, shares in enumerate(stages, 1):
            even = 1 / shares[row].size
            _overlay(axes[row, column], image, shares[row], max(float(shares[row].max()), EVEN * even), smooth=False)
            title = f"stage {column}: {100 * shares[row].max():.0f} %, even: {100 * even:.0f} %"
            axes[row, column].set_title(title, **TITLE)
        for axis in axes[row]:
            axis.plot(
                position[0] * side - 0.5, position[1] * side - 0.5, "o", color="white", markeredgecolor="black", ms=6
            )
    return figure


def receptive_fields(fields: NDArray[np.float64]) -> Figure:
    """Draw the field of each stage side by side; a frame holds half of its sum.

    Args:
        fields: sums of gradients, float64 [stages, S, S].
    """
    figure, axes = _grid(1, len(fields), cell=1.4 * CELL)
    for stage, field in enumerate(fields):
        side = field.shape[0]
        # As upstream's figures: log10(x + 1) of the field scaled to a largest value of its own, then of the picture.
        shown = np.log10(field / max(field.max(), 1e-300) * 1e3 + 1)
        axes[0, stage].imshow(shown / shown.max(), cmap="viridis", vmin=0, vmax=1)
        stride = FIRST_STRIDE * 2**stage
        positions = -(-side // stride)
        # A map of one position sees from everywhere.
        centre = positions // 2 * stride if positions > 1 else side // 2
        half = side_of_half(field, centre)
        first, last = max(centre - half / 2, -0.5), min(centre + half / 2, side - 0.5)
        frame = Rectangle((first, first), last - first, last - first, fill=False, edgecolor="white", lw=1.2)
        axes[0, stage].add_patch(frame)
        axes[0, stage].set_title(f"stage {stage + 1}: half within {half} of {side} px", **TITLE)
    return figure


def side_of_half(field: NDArray[np.float64], centre: int) -> int:
    """Return the side of the smallest square around the pixel (centre, centre) that holds half of a field's sum."""
    side = field.shape[0]
    for reach in range(side):
        inner = slice(max(centre - reach, 0), centre + reach + 1)
        if field[inner, inner].sum() >= field.sum() / 2:
            return min(2 * reach + 1, side)
    return side


def kernels(images: Sequence[Pixels], stages: Sequence[NDArray[np.float32]]) -> Figure:
    """Draw the mean kernels of a few channels of each stage, and below them what each image adds; one image: its own.

    Args:
        images: uint8 [S, S, 3] each.
        stages: float32 [N, C, K, K] for each stage.
    """
    several = len(images) > 1
    parts = [range(first, min(first + BESIDE, len(stages))) for first in range(0, len(stages), BESIDE)]
    rows = len(images) + several
    # A row without anything has room for the titles of the next part.
    heights = [*([1.0] * rows + [0.3]) * (len(parts) - 1), *[1.0] * rows]
    figure, axes = _grid(len(heights), 1 + BESIDE * CHANNELS, cell=0.55 * CELL, heights=heights)
    for part, shown in enumerate(parts):
        cells = axes[part * (rows + 1) : part * (rows + 1) + rows]
        for row, image in enumerate(images, int(several)):
            cells[row, 0].imshow(image)
        if several:
            cells[0, 0].text(0.5, 0.5, "mean\n\nand what\neach image\nadds", ha="center", va="center", fontsize=8)
        chosen = [(stage, channel) for stage in shown for channel in varying_channels(stages[stage])]
        for column, (stage, channel) in enumerate(chosen, 1):
            made = stages[stage][:, channel]
            title = f"stage {stage + 1}\nchannel {channel}{_draw_kernels(cells[:, column], made)}"
            cells[0, column].set_title(title, fontsize=8, linespacing=1)
    return figure


def _draw_kernels(column: NDArray[Any], made: NDArray[np.float32]) -> str:
    """Draw the kernels [N, K, K] of a channel: their mean and what each image adds, or the only one.

    Return the end of the column's title: how much the images add.
    """
    if len(made) == 1:
        _kernel(column[0], made[0], float(np.abs(made).max()))
        return ""
    mean = made.mean(axis=0)
    added = made - mean
    _kernel(column[0], mean, float(np.abs(mean).max()))
    for axis, kernel in zip(column[1:], added, strict=True):
        _kernel(axis, kernel, float(np.abs(added).max()))
    return f"\nadds {100 * np.abs(added).mean() / max(float(np.abs(mean).mean()), 1e-12):.0f} %"


def _kernel(axis: Any, kernel: NDArray[np.float32], largest: float) -> None:
    axis.imshow(kernel, cmap="RdBu_r", vmin=-largest, vmax=largest)


def varying_channels(made: NDArray[np.float32]) -> list[int]:
    """Return the channels whose kernels [N, C, K, K] differ most between images; of one image, the strongest."""
    strength = made.std(axis=0) if len(made) > 1 else np.abs(made[0])
    # Relative to the kernel, or the largest kernels would always win.
    weight = strength.mean(axis=(1, 2)) / (np.abs(made).mean(axis=(0, 2, 3)) + 1e-12 if len(made) > 1 else 1)
    return sorted(np.argsort(-weight, kind="stable")[:CHANNELS].tolist())


def stack(images: Sequence[Pixels], answers: Sequence[Pixels]) -> Pixels:
    """Return one picture with a row for each image: the image and its answer, uint8 [H, W, 3] each."""
    rows = [np.concatenate([_fitted(image), _gap(_fitted(image)), _fitted(answer)], axis=1)
            for image, answer in zip(images, answers, strict=True)]  # fmt: skip
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.ascontiguousarray(np.concatenate(padded)[:-GAP])


def _fitted(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    factor = SIDE / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(
        cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC), np.uint8
    )


def _gap(beside: Pixels) -> Pixels:
    return np.full((beside.shape[0], GAP, 3), 255, np.uint8)


def _overlay(axis: Any, image: Pixels, values: NDArray[np.float32], largest: float, *, smooth: bool = True) -> None:
    """Draw an image in gray, and a map [h, w] over it."""
    height, width = image.shape[:2]
    gray = image.mean(axis=2)
    axis.imshow(gray, cmap="gray", vmin=0, vmax=255)
    how = cv2.INTER_CUBIC if smooth else cv2.INTER_NEAREST
    enlarged = np.clip(cv2.resize(values, (width, height), interpolation=how) / max(largest, 1e-12), 0, 1)
    axis.imshow(enlarged, cmap="jet", vmin=0, vmax=1, alpha=0.45)


def _grid(
    rows: int, columns: int, cell: float = CELL, heights: Sequence[float] | None = None
) -> tuple[Figure, NDArray[Any]]:
    """Return a figure of square places without ticks, each with room for a title above it.

    Args:
        rows: number of rows.
        columns: number of columns.
        cell: side of a place, in inches.
        heights: height of each row, in places; None: one each.
    """
    heights = [1.0] * rows if heights is None else heights
    width, height = cell * columns, cell * sum(heights) + TITLE_HEIGHT * rows + TITLE_HEIGHT
    figure = Figure(figsize=(width, height))
    axes: Any = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    # Matplotlib's own layouts take seconds for so many places.
    figure.subplots_adjust(
        left=GAP / 100 / width,
        right=1 - GAP / 100 / width,
        bottom=GAP / 100 / height,
        top=1 - 2 * TITLE_HEIGHT / height,
        wspace=0.05,
        hspace=1.2 * TITLE_HEIGHT * rows / (cell * sum(heights)),
    )
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes
