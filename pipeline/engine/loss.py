"""The loss, and the module that DeepSpeed runs: the network with its loss."""

import torch
import torch.nn.functional as F
from torch import nn


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, in fp32 at least, of `logits` [N, classes] against distributions `targets` [N, classes]."""
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.sum(-targets * F.log_softmax(scores, dim=-1), dim=-1).mean()


class LossModel(nn.Module):
    """A network that returns the loss of its logits."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap a model from images [N, 3, H, W] to logits [N, classes]."""
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar in fp32, of images [N, 3, H, W] against target distributions [N, classes]."""
        return soft_cross_entropy(self.model(images), targets)
