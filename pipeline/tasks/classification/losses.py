"""The loss of a classification."""

import torch
import torch.nn.functional as F


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, in fp32 at least, of `logits` [N, classes] against distributions `targets` [N, classes]."""
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.sum(-targets * F.log_softmax(scores, dim=-1), dim=-1).mean()
