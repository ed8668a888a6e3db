"""From a batch of crops to the inputs of the losses, on the device."""

import torch
from torch import Tensor

from pipeline.config.schema import AugmentConfig
from pipeline.tasks.batch import Batch, made_up_batch
from pipeline.tasks.normalise import Normalise
from pipeline.tasks.segmentation.augment import IGNORED, PADDING


class NormalisedCrops:
    """Normalises crops; what lies beside a smaller image is 0 and ignored."""

    def __init__(self, augment: AugmentConfig) -> None:
        """Take mean and deviation from `augment`."""
        self._normalise = Normalise(augment)

    def __call__(self, batch: Batch, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Return images float32 [N, 3, H, W] and classes uint8 [N, H, W] of a batch."""
        device = torch.device(device)
        images = self._normalise(batch.images, device)
        labels = batch.labels.to(device, non_blocking=True)
        padding = labels == PADDING
        return images.masked_fill(padding.unsqueeze(1), 0.0), labels.masked_fill(padding, IGNORED)


def largest_batch(side: int, num_classes: int, samples: int) -> Batch:
    """Return made-up crops of `side` pixels with pixels of all classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (samples, side, side, 3), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, num_classes, (samples, side, side), generator=generator, dtype=torch.uint8)
    return made_up_batch(pixels.permute(0, 3, 1, 2), labels)
