"""Mixup and CutMix: draws how a group of images is mixed, and mixes images and targets on the device.

The distributions are those of timm's `FastCollateMixup` in batch mode; the box of CutMix is that of timm 0.6.12.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config.schema import MixConfig
from pipeline.order import draws


@dataclass(frozen=True)
class Mixing:
    """How image i of a group's n images in a micro-batch is mixed with image n - 1 - i.

    Attributes:
        weight: weight of image i itself; 1 mixes nothing.
        box: (top, left, bottom, right) of the rectangle that is pasted from the other image (CutMix); None blends the
            whole images (Mixup).
    """

    weight: float
    box: tuple[int, int, int, int] | None


def draw_mixing(seed: int, step: int, group: int, height: int, width: int, config: MixConfig) -> Mixing:
    """Draw the mixing of a group as timm's `Mixup` draws that of a batch; every rank draws the same one.

    Args:
        seed: seed of the training.
        step: optimizer step.
        group: mixing group of the step.
        height: height of the images.
        width: width of the images.
        config: alphas and probabilities.
    """
    key = draws.key(seed, draws.Purpose.MIX, step, group)
    u_mix, u_cut, u_top, u_left = draws.uniforms(key, 4).tolist()
    if not (config.mixup > 0 or config.cutmix > 0) or u_mix >= config.probability:
        return Mixing(1.0, None)
    cut = config.cutmix > 0 and (config.mixup <= 0 or u_cut < config.switch)
    alpha = config.cutmix if cut else config.mixup
    # One Beta variate is drawn for a group, so a generator for it is cheap; numpy's Beta is unchanged since 1.17.
    weight = float(np.random.Generator(np.random.Philox(key=int(draws.bits(key, 5)[4]))).beta(alpha, alpha))
    if not cut:
        return Mixing(weight, None)
    share = math.sqrt(1 - weight)
    cut_height, cut_width = int(height * share), int(width * share)
    middle_y, middle_x = int(u_top * height), int(u_left * width)
    top, bottom = max(0, middle_y - cut_height // 2), min(height, middle_y + cut_height // 2)
    left, right = max(0, middle_x - cut_width // 2), min(width, middle_x + cut_width // 2)
    return Mixing(1 - (bottom - top) * (right - left) / (height * width), (top, left, bottom, right))


def mix(images: Tensor, targets: Tensor, rows: NDArray[np.int64], mixing: Mixing) -> None:
    """Mix the images of one group, and their targets, in place.

    Args:
        images: float32 [N, 3, H, W] with whole numbers from 0 to 255; blended pixels are rounded to such.
        targets: float32 [N, classes].
        rows: int64 [n], the rows of the group; row i is mixed with row n - 1 - i.
        mixing: weight and box of the group.
    """
    chosen = slice(None) if len(rows) == len(images) else upload(rows, images.device)
    if mixing.box is None:
        own = images[chosen]
        images[chosen] = torch.lerp(own.flip(0), own, mixing.weight).round_()
    else:
        top, left, bottom, right = mixing.box
        images[chosen, :, top:bottom, left:right] = images[chosen, :, top:bottom, left:right].flip(0)
    own_targets = targets[chosen]
    targets[chosen] = torch.lerp(own_targets.flip(0), own_targets, mixing.weight)


def upload(values: NDArray[np.int64] | Sequence[int], device: torch.device) -> Tensor:
    """Copy a small array of integers to the device without waiting for the copy."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
