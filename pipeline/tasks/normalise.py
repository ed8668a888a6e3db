"""Normalisation of pixels on the device, for every task."""

import torch
from torch import Tensor

from pipeline.config.schema import AugmentConfig


class Normalise:
    """Normalises pixels to float32: subtracts the mean and divides by the standard deviation of each channel."""

    def __init__(self, config: AugmentConfig) -> None:
        """Take mean and standard deviation from `config`."""
        self._mean, self._std = config.mean, config.std
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor, device: torch.device) -> Tensor:
        """Normalise a batch.

        Args:
            images: [N, 3, H, W] with values from 0 to 255, uint8 or float32, on any device.
            device: device of the result.

        Returns:
            float32 [N, 3, H, W], contiguous.
        """
        if device not in self._constants:
            mean = torch.tensor(self._mean, device=device).view(1, 3, 1, 1) * 255
            scale = 1 / (torch.tensor(self._std, device=device).view(1, 3, 1, 1) * 255)
            self._constants[device] = (-mean * scale, scale)
        shift, scale = self._constants[device]
        images = images.to(device, non_blocking=True)
        return torch.addcmul(shift, images.to(torch.float32, memory_format=torch.contiguous_format), scale)
