"""A micro-batch as the loader gives it and a task takes it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch of a rank: CPU tensors of N samples.

    The loader reuses the memory of `images` once no tensor refers to it. For a GPU that memory is page-locked, and the
    loader first waits for the copies that the current stream had queued by then.

    Attributes:
        images: uint8 [N, 3, H, W], RGB, with the strides of channels last.
        labels: targets of the samples: int64 [N], the class of each; or uint8 [N, H, W], its label map.
        indices: int64 [N], row of each sample in the index.
        epochs: int64 [N], epoch in which each sample is read.
        substitutes: int64 [N], row that was read in place of a damaged sample, or -1.
        groups: int64 [N], mixing group of each sample (`pipeline.order.samples.mixing_groups`).
        step: optimizer step that the batch belongs to; in an evaluation, number of the batch.
        micro_step: position among the micro-batches of the step.
        sizes: int64 [N, 4], height and width of each image and bytes of its target, where images and labels are uint8
            [N, bytes] because sizes differ; else None.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    epochs: Tensor
    substitutes: Tensor
    groups: Tensor
    step: int
    micro_step: int
    sizes: Tensor | None = None


def made_up_batch(images: Tensor, labels: Tensor, sizes: Tensor | None = None) -> Batch:
    """Return samples that no split has, of one mixing group of step 0, with images, labels and sizes as in `Batch`."""
    rows = torch.arange(len(images))
    zeros = torch.zeros_like(rows)
    return Batch(images, labels, rows, zeros, zeros - 1, zeros, step=0, micro_step=0, sizes=sizes)
