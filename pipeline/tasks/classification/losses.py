"""The losses of a classification: against the labels, and against a teacher."""

import torch
import torch.nn.functional as F

from pipeline.config.schema import DistillationConfig


def soft_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, in fp32 at least, of `logits` [N, classes] against distributions `targets` [N, classes]."""
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return torch.sum(-targets * F.log_softmax(scores, dim=-1), dim=-1).mean()


def distillation_loss(logits: torch.Tensor, teacher: torch.Tensor, config: DistillationConfig) -> torch.Tensor:
    """Mean loss of `logits` [N, classes] against the logits `teacher` [N, classes], a scalar in fp32 at least.

    Soft: the Kullback-Leibler divergence between both distributions at a temperature, times its square, so that its
    gradient does not shrink with the temperature (Hinton et al. 2015, section 2). Hard: the cross-entropy against the
    teacher's likeliest class (DeiT, section 4).
    """
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if config.kind == "hard":
        return F.cross_entropy(scores, teacher.argmax(1))
    own = F.log_softmax(scores / config.temperature, dim=1)
    taught = F.log_softmax(teacher.to(scores.dtype) / config.temperature, dim=1)
    return F.kl_div(own, taught, reduction="batchmean", log_target=True) * config.temperature**2
