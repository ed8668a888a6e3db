"""The loss, and a network that returns it: what DeepSpeed runs forward and backward."""

import torch
import torch.nn.functional as F
from torch import nn


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in fp32 of `logits` [N, classes] against the distributions `targets` [N, classes]."""
    return torch.sum(-targets * F.log_softmax(logits.float(), dim=-1), dim=-1).mean()


class LossModel(nn.Module):
    """`model` with the loss of its logits."""

    def __init__(self, model: nn.Module) -> None:
        """`model` makes logits [N, classes] of images."""
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss of `images` [N, 3, H, W] against the distributions `targets` [N, classes], a scalar in fp32."""
        return soft_cross_entropy(self.model(images), targets)
