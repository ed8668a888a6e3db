"""The loss against a teacher, and what the teacher is shown."""

import pytest
import torch
from torch.nn import functional as F

from pipeline.config.schema import AugmentConfig, DistillationConfig, MixConfig, TrainConfig
from pipeline.tasks import find_task
from pipeline.tasks.batch import Batch
from pipeline.tasks.classification.losses import distillation_loss, soft_cross_entropy


def logits(seed: int) -> torch.Tensor:
    return 3 * torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_soft_loss_is_the_divergence_of_softened_probabilities():
    own, taught = logits(0), logits(1)
    p, q = (taught / 4).softmax(1), (own / 4).softmax(1)
    by_hand = 16 * (p * (p.log() - q.log())).sum(1).mean()
    torch.testing.assert_close(distillation_loss(own, taught, DistillationConfig(temperature=4.0)), by_hand)
    assert float(distillation_loss(own, own, DistillationConfig())) == pytest.approx(0.0, abs=1e-12)


def test_the_hard_loss_takes_the_teachers_likeliest_class():
    own, taught = logits(0), logits(1)
    expected = -own.log_softmax(1)[range(6), taught.argmax(1)].mean()
    torch.testing.assert_close(distillation_loss(own, taught, DistillationConfig(kind="hard")), expected)


def test_logits_of_lower_precision_give_a_loss_in_fp32():
    own, taught = logits(0).bfloat16(), logits(1).float()
    for kind in ("soft", "hard"):
        assert distillation_loss(own, taught, DistillationConfig(kind=kind)).dtype == torch.float32


def test_the_teacher_sees_the_images_that_the_network_sees_and_shares_the_loss():
    """The images are flipped, mixed, normalised and erased once, for both."""
    augment, mix = AugmentConfig(random_erasing=1.0, horizontal_flip=1.0), MixConfig(group_size=4)
    config = TrainConfig(augment=augment, mix=mix, distill="teacher", distillation=DistillationConfig(weight=0.25))
    generator = torch.Generator().manual_seed(3)
    numbers = torch.arange(4)
    batch = Batch(
        images=torch.randint(0, 256, (4, 3, 32, 32), generator=generator).to(torch.uint8),
        labels=numbers % 5,
        indices=numbers,
        epochs=torch.zeros(4, dtype=torch.int64),
        substitutes=-torch.ones(4, dtype=torch.int64),
        groups=torch.zeros(4, dtype=torch.int64),
        step=0,
        micro_step=0,
    )
    task, shown = find_task("classification"), []

    def teacher(images: torch.Tensor) -> torch.Tensor:
        shown.append(images.clone())
        return images.flatten(1)[:, :5]

    distillation = task.distillation
    assert distillation is not None
    images, targets, answers = distillation.device_transform(config, 5, teacher)(batch, "cpu")
    plain_images, plain_targets = task.device_transform(config, 5)(batch, "cpu")
    assert torch.equal(images, plain_images)
    assert torch.equal(shown[0], plain_images)
    assert torch.equal(targets, plain_targets)

    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 5))
    losses = distillation.losses(config)(network, images, targets, answers)
    torch.testing.assert_close(losses["loss_ce"], 0.75 * soft_cross_entropy(network(images), targets))
    divergence = F.kl_div(network(images).log_softmax(1), answers.softmax(1), reduction="batchmean")
    torch.testing.assert_close(losses["loss_distill"], 0.25 * divergence)
