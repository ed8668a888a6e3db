"""The teacher in a training: rank 0 loads it, and every rank asks its own copy."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.common.errors import TrainingError
from pipeline.common.secrets import mask_secrets
from pipeline.config.schema import AugmentConfig, ConfigError, TrainConfig
from pipeline.engine.distributed import World, broadcast_from_main
from pipeline.engine.engine import DTYPES
from pipeline.run.recorder import Recorder
from pipeline.tasks import find_task
from pipeline.tasks.batch import Batch
from pipeline.weights.teacher import Teacher, load_teacher, record_teacher


class TeacherAnswers:
    """A teacher on a device: maps the images that the network sees to logits. It is not trained, and draws nothing."""

    def __init__(self, teacher: Teacher, augment: AugmentConfig, precision: str, device: torch.device) -> None:
        """Prepare a teacher.

        Args:
            teacher: the teacher.
            augment: mean and deviation that the images were normalised by.
            precision: arithmetic of its forward pass, as of the training.
            device: device of the images.
        """
        self._network = teacher.network.to(device)
        self._dtype = DTYPES[precision]
        self._scale, self._shift = None, None
        if (augment.mean, augment.std) != (teacher.mean, teacher.std):
            mean, std, its_mean, its_std = (
                torch.tensor(value, device=device).view(3, 1, 1)
                for value in (augment.mean, augment.std, teacher.mean, teacher.std)
            )
            self._scale, self._shift = std / its_std, (mean - its_mean) / its_std

    def __call__(self, images: Tensor) -> Tensor:
        """Logits float32 [N, classes] of images float32 [N, 3, H, W]."""
        if self._scale is not None and self._shift is not None:
            images = images * self._scale + self._shift
        is_lower = self._dtype != torch.float32
        with torch.no_grad(), torch.autocast(images.device.type, self._dtype, enabled=is_lower):
            return self._network(images).float()


def build_transform(
    config: TrainConfig, classes: Sequence[str], run_dir: Path, world: World, recorder: Recorder
) -> Callable[[Batch, torch.device | str], tuple[Tensor, ...]]:
    """Build what turns a batch into the inputs of the losses, with a teacher's answer if there is one. Collective.

    Args:
        config: of the training, whose `distill` names the teacher.
        classes: id of each class of the shards.
        run_dir: of the run, in which the teacher is recorded.
        world: this process among the ranks.
        recorder: logs which teacher it is.

    Raises:
        TrainingError: on every rank, with rank 0's reason why there is no such teacher, or why it is another one.
    """
    task = find_task(config.task)
    if config.distill is None:
        return task.device_transform(config, len(classes))
    assert task.distillation is not None
    found: Teacher | str = ""
    if world.is_main:
        try:
            found = load_teacher(config.distill, classes, config.model.image_size)
            record_teacher(run_dir, found)
        except ConfigError as error:
            found = str(error)
    teacher = broadcast_from_main(found)
    if not isinstance(teacher, Teacher):
        raise TrainingError(str(teacher))
    recorder.log(f"teacher: {teacher.name} of {mask_secrets(config.distill)}, weights {teacher.digest[:12]}")
    answers = TeacherAnswers(teacher, config.augment, config.precision, world.device)
    return task.distillation.device_transform(config, len(classes), answers)
