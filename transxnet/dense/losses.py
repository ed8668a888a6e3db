"""Losses of the dense networks, computed in fp32 or wider, deterministic on every device."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["IGNORE", "at_least_fp32", "pixel_cross_entropy"]

IGNORE = 255
"""Label of the pixels that belong to no class."""


def at_least_fp32(x: Tensor) -> Tensor:
    """Return `x` in fp32 if it is narrower, else as is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy of a segmentation: its sum over labelled pixels, divided by the number of all pixels.

    Upstream divides by the ignored pixels too, so an image with fewer labelled pixels weighs less. The logits are
    taken as a table of pixels, because PyTorch's loss on maps is not deterministic on CUDA devices.

    Args:
        logits: `[N, classes, H, W]`.
        labels: `[N, H, W]` of any integer dtype; `IGNORE` marks pixels without a class.
    """
    table = at_least_fp32(logits).permute(0, 2, 3, 1).flatten(0, 2)
    return F.cross_entropy(table, labels.flatten().long(), ignore_index=IGNORE, reduction="sum") / labels.numel()
