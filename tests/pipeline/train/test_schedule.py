"""The schedule equals timm's and is a function of the step."""

from dataclasses import replace

import pytest
import torch
from timm.scheduler import CosineLRScheduler

from pipeline.config.schema import ScheduleConfig, TrainConfig
from pipeline.recipes import RECIPES
from pipeline.train.schedule import build_schedule, describe_slow_average, evaluation_is_due

IMAGENET = 1_281_167


def test_learning_rate_is_timms_at_every_step():
    config = replace(
        TrainConfig(),
        epochs=10.0,
        schedule=ScheduleConfig(warmup_epochs=2.0, cooldown_epochs=3.0),
        global_batch_size=10,
    )
    schedule = build_schedule(config, 100)
    assert (schedule.total_steps, schedule.cosine_steps, schedule.warmup_steps) == (130, 100, 20)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.optimizer.lr)
    theirs = CosineLRScheduler(
        optimizer,
        t_initial=schedule.cosine_steps,
        lr_min=config.schedule.min_lr,
        warmup_t=schedule.warmup_steps,
        warmup_lr_init=config.schedule.warmup_lr,
        t_in_epochs=False,
    )
    for step in range(schedule.total_steps):
        theirs.step_update(step)
        assert schedule.lr_at(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


@pytest.mark.parametrize("num_samples", [100, 96, 1037])
def test_learning_rate_per_epoch_is_timms_of_that_epoch(num_samples):
    plan = ScheduleConfig(warmup_epochs=2.0, cooldown_epochs=3.0, per="epoch")
    config = replace(TrainConfig(), epochs=10.0, schedule=plan, global_batch_size=10)
    schedule = build_schedule(config, num_samples)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.optimizer.lr)
    theirs = CosineLRScheduler(
        optimizer, t_initial=10, lr_min=plan.min_lr, warmup_t=2, warmup_lr_init=plan.warmup_lr, t_in_epochs=True
    )
    steps_per_epoch = schedule.total_steps / 13
    for step in range(schedule.total_steps):
        theirs.step(int(step / steps_per_epoch))
        assert schedule.lr_at(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_the_tiny_recipe_is_upstreams_schedule_on_imagenet():
    schedule = build_schedule(RECIPES["tiny"].train(), IMAGENET)
    assert schedule.total_steps == -(-310 * IMAGENET // 1024)
    assert schedule.lr_at(0) == 1e-6
    assert schedule.lr_at(schedule.warmup_steps) == pytest.approx(2e-3, rel=1e-2)
    assert schedule.lr_at(schedule.total_steps - 1) == 1e-5


def test_steps_scale_the_whole_schedule():
    schedule = build_schedule(replace(TrainConfig(), steps=62), 1000)
    assert (schedule.total_steps, schedule.cosine_steps, schedule.warmup_steps) == (62, 60, 1)


def test_an_epochs_end_is_evaluated_once_and_the_last_step_always():
    config = replace(TrainConfig(), global_batch_size=30)
    due = [step for step in range(1, 12) if evaluation_is_due(config, step, 11, 100)]
    assert due == [4, 7, 10, 11]
    config = replace(config, eval_every_steps=5)
    assert [step for step in range(1, 12) if evaluation_is_due(config, step, 11, 100)] == [5, 10, 11]


def test_the_warm_up_of_the_dense_recipes_multiplies_the_cosine_as_mmcvs():
    schedule = build_schedule(RECIPES["ade20k_tiny"].train(), 20_210)
    assert schedule.total_steps == 80_000
    expected = {0: 2e-05, 1: 2.018e-05, 500: 0.000109989398, 999: 0.000199743127, 1000: 0.000199922904}
    expected |= {2000: 0.000199691733, 40_000: 0.000100000001, 79_990: 9.71062826e-12, 79_999: 2.07710629e-12}
    assert {step: schedule.lr_at(step) for step in expected} == pytest.approx(expected, rel=1e-8)


def test_an_average_that_would_hardly_leave_the_first_weights_is_told():
    [warning] = describe_slow_average(TrainConfig(), 125)
    assert "will be 98 % those of the start after 125 steps: --train.ema-decay 0.96 fits" in warning
    assert not describe_slow_average(TrainConfig(ema_decay=0.96), 125)
    assert not describe_slow_average(TrainConfig(ema_decay=0.0), 1)
    demo = RECIPES["demo"].train()
    assert not describe_slow_average(demo, build_schedule(demo, 1437).total_steps)
    small = RECIPES["fine_tune"].train()
    assert not describe_slow_average(small, build_schedule(small, 200).total_steps)
