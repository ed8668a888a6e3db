"""Record what timm's own objects do in 20 steps: decay groups, learning rates, mixing, loss, AdamW and weight average.

`python -m tests.benchmarks.fidelity_record` writes `tests/pipeline/train/fidelity.json`, which
`tests/pipeline/train/test_fidelity.py` replays with this package's objects.
"""

import hashlib
import json
from typing import Any

import numpy as np
import timm
import torch
from timm.data import mixup as timm_mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV2
from torch import Tensor

from tests.support import fidelity

MARGIN = 1e-4
"""Least distance of a blended pixel from a half: all machines then round it alike."""


class RecordingCollate(timm_mixup.FastCollateMixup):
    """timm's collate function of upstream's loader, which keeps the weight and the box that it drew."""

    def _params_per_batch(self) -> tuple[float, bool]:
        self.weight, self.cuts = super()._params_per_batch()
        return self.weight, self.cuts


def mixed_batch(step: int) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Mix the batch of a step by timm: images uint8, targets float32, and what was drawn."""
    images, labels = fidelity.samples(step)
    mix = fidelity.MIX
    collate = RecordingCollate(mix.mixup, mix.cutmix, label_smoothing=mix.label_smoothing, num_classes=fidelity.CLASSES)
    batch = [(image.numpy(), int(label)) for image, label in zip(images, labels, strict=True)]
    boxes = []
    draw_box = timm_mixup.cutmix_bbox_and_lam

    def keep_box(*args: Any, **options: Any) -> Any:
        boxes.append(draw_box(*args, **options))
        return boxes[-1]

    timm_mixup.cutmix_bbox_and_lam = keep_box
    try:
        for seed in range(100 * step, 100 * step + 100):
            np.random.seed(seed)
            boxes.clear()
            mixed, targets = collate(batch)
            blend = images.double() * collate.weight + images.flip(0).double() * (1 - collate.weight)
            if collate.cuts or float((blend - blend.floor() - 0.5).abs().min()) > MARGIN:
                break
        else:
            raise RuntimeError(f"step {step}: no draw keeps all blended pixels {MARGIN} away from a half")
    finally:
        timm_mixup.cutmix_bbox_and_lam = draw_box
    drawn: dict[str, Any] = {"weight": collate.weight, "box": None}
    if collate.cuts:
        (top, bottom, left, right), weight = boxes[0]
        drawn = {"weight": float(weight), "box": [int(side) for side in (top, left, bottom, right)]}
    return mixed, targets, drawn


def learning_rates(optimizer: torch.optim.Optimizer, per: str) -> list[float]:
    """Return timm's learning rate of each step."""
    plan = fidelity.recipe(per).schedule
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=fidelity.EPOCHS,
        cooldown_epochs=fidelity.COOLDOWN,
        min_lr=plan.min_lr,
        warmup_lr=plan.warmup_lr,
        warmup_epochs=fidelity.WARMUP,
        step_on_epochs=per == "epoch",
        updates_per_epoch=fidelity.STEPS_PER_EPOCH,
    )
    rates = []
    for step in range(fidelity.STEPS):
        if per == "epoch":
            scheduler.step(step // fidelity.STEPS_PER_EPOCH)
        else:
            scheduler.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def record() -> dict[str, Any]:
    """Train 20 steps with timm's objects, and return what `fidelity.json` holds."""
    config = fidelity.recipe()
    options = config.optimizer
    model = fidelity.network()

    def optimizer_of(network: torch.nn.Module) -> torch.optim.Optimizer:
        return create_optimizer_v2(
            network, opt="adamw", lr=options.lr, weight_decay=options.weight_decay, betas=options.betas, eps=options.eps
        )

    rates = {per: learning_rates(optimizer_of(fidelity.network()), per) for per in ("step", "epoch")}
    optimizer, average, criterion = optimizer_of(model), ModelEmaV2(model, config.ema_decay), SoftTargetCrossEntropy()
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [
        {"weight_decay": group["weight_decay"], "names": sorted(names[p] for p in group["params"])}
        for group in optimizer.param_groups
    ]
    steps = []
    for step, rate in enumerate(rates["step"]):
        mixed, targets, drawn = mixed_batch(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = criterion(model(fidelity.normalised(mixed)), targets.double())
        loss.backward()
        optimizer.step()
        average.update(model)
        digest = hashlib.sha256(mixed.numpy().tobytes()).hexdigest()
        steps.append(drawn | {"images": digest, "targets": targets.tolist(), "loss": loss.item()})
    return {
        "made_by": f"python -m tests.benchmarks.fidelity_record, timm {timm.__version__}, torch {torch.__version__}",
        "groups": groups,
        "rates": rates,
        "steps": steps,
        "weights": _fingerprints(model),
        "average": _fingerprints(average.module),
    }


def _fingerprints(model: torch.nn.Module) -> dict[str, tuple[float, float]]:
    return {n: fidelity.fingerprint(n, v) for n, v in model.state_dict().items() if v.is_floating_point()}


def main() -> None:
    """Write the record."""
    text = json.dumps(record(), separators=(",", ":")).replace('},{"', '},\n{"').replace("],", "],\n")
    fidelity.RECORD.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {fidelity.RECORD}, {len(text):,} bytes")


if __name__ == "__main__":
    main()
