"""Twenty steps of the recipe are what timm's own objects made of the same batches, to rounding.

`fidelity.json` was recorded by `tests/benchmarks/fidelity_record.py` from timm's optimizer factory, scheduler, collate
function, loss and `ModelEmaV2`, in double precision. Here the same batches go through this package's objects.
"""

import hashlib
import json

import numpy as np
import pytest
import torch

from pipeline.engine.ema import Ema
from pipeline.engine.fragments import LocalWeight
from pipeline.engine.optimizer import build_optimizer, parameter_groups
from pipeline.tasks.classification.device import DeviceTransform
from pipeline.tasks.classification.losses import soft_cross_entropy
from pipeline.tasks.classification.mixup import Mixing, mix
from pipeline.train.schedule import build_schedule
from tests.support import fidelity

RELATIVE, ABSOLUTE = 1e-9, 1e-10
"""Rounding of 20 steps in double precision; one thread and two are up to 1e-10 apart.

Biases right before a BatchNorm (`mlp.norm2`, and two in the token mixer's enhancement) have gradients that are exactly
zero in exact arithmetic. AdamW moves them, and the running means behind them, by rounding alone: by 1e-11 here. So only
the absolute bound says something about them."""


@pytest.fixture(scope="module")
def recorded():
    return json.loads(fidelity.RECORD.read_text(encoding="utf-8"))


def mixed_batch(step: int, drawn: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch of a step as our device code mixes it, by the weight and the box that timm drew."""
    images, labels = fidelity.samples(step)
    pixels = images.float()
    transform = DeviceTransform(fidelity.recipe().augment, fidelity.MIX, fidelity.CLASSES, 0)
    targets = transform._targets(labels)
    box = tuple(drawn["box"]) if drawn["box"] else None
    mix(pixels, targets, np.arange(fidelity.BATCH), Mixing(drawn["weight"], box))
    return pixels, targets


def test_decay_groups_are_timms(recorded):
    groups = parameter_groups(fidelity.network(), fidelity.recipe().optimizer)
    ours = sorted((group.weight_decay, sorted(group.names)) for group in groups.values())
    assert ours == sorted((group["weight_decay"], group["names"]) for group in recorded["groups"])
    assert all(group.lr_scale == 1 for group in groups.values())


@pytest.mark.parametrize("per", ["step", "epoch"])
def test_learning_rates_are_timms(per, recorded):
    schedule = build_schedule(fidelity.recipe(per), fidelity.BATCH * fidelity.STEPS_PER_EPOCH)
    assert schedule.total_steps == fidelity.STEPS
    ours = [schedule.lr_at(step) for step in range(fidelity.STEPS)]
    assert ours == pytest.approx(recorded["rates"][per], rel=1e-12)


def test_mixed_images_and_targets_are_timms(recorded):
    kinds = set()
    for step, drawn in enumerate(recorded["steps"]):
        kinds.add(drawn["box"] is not None)
        images, targets = mixed_batch(step, drawn)
        assert hashlib.sha256(images.to(torch.uint8).numpy().tobytes()).hexdigest() == drawn["images"], step
        torch.testing.assert_close(targets, torch.tensor(drawn["targets"]), rtol=0, atol=2e-7)
    assert kinds == {True, False}


def test_weights_and_average_after_twenty_steps_are_timms(recorded):
    config = fidelity.recipe()
    model = fidelity.network()
    weights = [
        LocalWeight(name=name, start=0, shape=value.shape, values=value.detach().view(-1))
        for name, value in model.named_parameters()
    ]
    average = Ema(weights, model, config.ema_decay, partitioned=False)
    optimizer = build_optimizer(model, parameter_groups(model, config.optimizer), config, torch.device("cpu"))
    schedule = build_schedule(config, fidelity.BATCH * fidelity.STEPS_PER_EPOCH)
    for step, drawn in enumerate(recorded["steps"]):
        images, _ = mixed_batch(step, drawn)
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr_at(step) * group["lr_scale"]
        optimizer.zero_grad()
        # The recorded targets are equal to ours within fp32 rounding, which double precision would show.
        targets = torch.tensor(drawn["targets"]).double()
        loss = soft_cross_entropy(model(fidelity.normalised(images)), targets)
        loss.backward()
        optimizer.step()
        average.update()
        assert loss.item() == pytest.approx(drawn["loss"], rel=RELATIVE), step
    averaged = {w.name: w.values.view(w.shape) for w in average.weights} | average.buffers
    live = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
    for ours, theirs in ((live, recorded["weights"]), (averaged, recorded["average"])):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            norm, product = theirs[name]
            rounding = RELATIVE * norm + ABSOLUTE
            assert fidelity.fingerprint(name, value) == pytest.approx((norm, product), rel=0, abs=rounding), name
