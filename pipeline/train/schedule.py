"""Learning rate, length and evaluations of a training: functions of the step."""

import math
from dataclasses import dataclass

from pipeline.config.schema import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, cosine, constant cooldown, in optimizer steps.

    Equal to timm's `CosineLRScheduler` without `warmup_prefix`: the cosine runs from step 0, and the warm-up
    replaces its beginning. The rate is that of timm's `t_in_epochs=False`; with `epoch_steps`, of `t_in_epochs=True`.
    """

    total_steps: int
    """Steps of the whole training, cooldown included."""
    cosine_steps: float
    """Step at which the cosine reaches `min_lr`."""
    warmup_steps: float
    """Steps of the linear warm-up."""
    lr: float
    """Peak learning rate."""
    warmup_lr: float
    """Learning rate of the first step."""
    min_lr: float
    """Learning rate of the cooldown."""
    warmup_ratio: float | None = None
    """Factor of the first step in a warm-up that multiplies the running cosine (mmcv's); None: timm's warm-up."""
    milestones: tuple[float, ...] = ()
    """Steps from which on the rate is a tenth of what it was; empty: the cosine."""
    epoch_steps: float | None = None
    """Steps of an epoch, within which the rate stays that of its beginning; None: the rate changes at every step."""

    def lr_at(self, completed_steps: int) -> float:
        """Learning rate of the step after `completed_steps` finished steps."""
        at: float = completed_steps
        if self.epoch_steps is not None:
            at = math.floor(completed_steps / self.epoch_steps) * self.epoch_steps
        if self.warmup_ratio is not None:
            return self._cosine(at) * self._factor(at)
        if at < self.warmup_steps:
            return self.warmup_lr + at * (self.lr - self.warmup_lr) / self.warmup_steps
        return self._cosine(at)

    def _cosine(self, at: float) -> float:
        if self.milestones:
            return self.lr * 0.1 ** sum(at >= milestone for milestone in self.milestones)
        if at < self.cosine_steps:
            return self.min_lr + 0.5 * (self.lr - self.min_lr) * (1 + math.cos(math.pi * at / self.cosine_steps))
        return self.min_lr

    def _factor(self, at: float) -> float:
        """Factor of mmcv's linear warm-up: from `warmup_ratio` to 1."""
        if at >= self.warmup_steps or self.warmup_ratio is None:
            return 1.0
        return 1 - (1 - at / self.warmup_steps) * (1 - self.warmup_ratio)


def build_schedule(config: TrainConfig, num_samples: int) -> Schedule:
    """The schedule of a training.

    Args:
        config: of the training; if it gives `steps`, warm-up, cosine and cooldown are scaled to fit them.
        num_samples: size of the training split.
    """
    plan = config.schedule
    epochs = config.epochs + plan.cooldown_epochs
    steps_per_epoch = num_samples / config.global_batch_size
    total = config.steps if config.steps is not None else max(1, math.ceil(epochs * steps_per_epoch))
    per_epoch = total / epochs
    cosine_steps: float = max(1, round(config.epochs * per_epoch)) if plan.cooldown_epochs else total
    warmup_steps: float = round(min(plan.warmup_epochs, config.epochs) * per_epoch)
    if plan.per == "epoch":
        cosine_steps, warmup_steps = config.epochs * per_epoch, min(plan.warmup_epochs, config.epochs) * per_epoch
    if plan.warmup_steps is not None:
        warmup_steps = plan.warmup_steps
    return Schedule(
        total_steps=total,
        cosine_steps=cosine_steps,
        warmup_steps=warmup_steps,
        lr=config.optimizer.lr,
        warmup_lr=plan.warmup_lr,
        min_lr=plan.min_lr,
        warmup_ratio=None if plan.warmup_steps is None else plan.warmup_ratio,
        milestones=tuple(epoch * per_epoch for epoch in plan.step_epochs),
        epoch_steps=per_epoch if plan.per == "epoch" else None,
    )


def evaluation_is_due(config: TrainConfig, step: int, total_steps: int, num_samples: int) -> bool:
    """Whether the state after `step` finished steps is evaluated: every interval or epoch, and at the end."""
    if step == total_steps:
        return True
    if config.eval_every_steps is not None:
        return step % config.eval_every_steps == 0
    batch = config.global_batch_size
    return step * batch // num_samples > (step - 1) * batch // num_samples


def describe_slow_average(config: TrainConfig, total_steps: int) -> list[str]:
    """Return a sentence if the moving average, which is evaluated and exported, still holds a tenth of the start."""
    kept = config.ema_decay**total_steps
    if kept < 0.1:
        return []
    fitting = max(0.0, round(1 - 5 / total_steps, 4))
    return [
        f"the averaged weights, which are evaluated and exported, will be {100 * kept:.0f} % those of the start after "
        f"{total_steps} steps: --train.ema-decay {fitting:g} fits so short a training"
    ]
