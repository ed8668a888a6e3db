"""A classifier that learns from a teacher: the teacher sees the same augmented, mixed and erased images."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from pipeline.config.schema import DistillationConfig, TrainConfig
from pipeline.tasks.batch import Batch
from pipeline.tasks.classification.device import DeviceTransform
from pipeline.tasks.classification.losses import distillation_loss, soft_cross_entropy


class ClassifierDistillation:
    """The teacher's logits as a second target (`pipeline.tasks.task.Distillation`)."""

    def device_transform(
        self, config: TrainConfig, num_classes: int, teacher: Callable[[Tensor], Tensor]
    ) -> Callable[[Batch, torch.device | str], tuple[Tensor, ...]]:
        """Images [N, 3, H, W] and targets [N, classes] as without a teacher, and its logits float32 [N, classes]."""
        transform = DeviceTransform(config.augment, config.mix, num_classes, config.seed)

        def transform_and_ask(batch: Batch, device: torch.device | str) -> tuple[Tensor, ...]:
            images, targets = transform(batch, device)
            return images, targets, teacher(images)

        return transform_and_ask

    def losses(self, config: TrainConfig) -> Callable[..., dict[str, Tensor]]:
        """Two weighted losses: against the targets, and against the teacher."""
        return partial(_losses, config.distillation)


def _losses(
    config: DistillationConfig, network: nn.Module, images: Tensor, targets: Tensor, teacher: Tensor
) -> dict[str, Tensor]:
    logits = network(images)
    return {
        "loss_ce": (1 - config.weight) * soft_cross_entropy(logits, targets),
        "loss_distill": config.weight * distillation_loss(logits, teacher, config),
    }
