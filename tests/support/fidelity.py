"""The batches, the network and the recipe on which this package is held to what timm's own objects did."""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import transxnet
from pipeline.config.schema import MixConfig, ScheduleConfig, TrainConfig
from tests.support.networks import small_network

RECORD = Path(__file__).parents[1] / "pipeline/train/fidelity.json"
"""Written by `python -m tests.benchmarks.fidelity_record`."""
SIDE, BATCH, CLASSES = 32, 8, 5
EPOCHS, WARMUP, COOLDOWN, STEPS_PER_EPOCH = 3, 1, 1, 5
STEPS = (EPOCHS + COOLDOWN) * STEPS_PER_EPOCH
MIX = MixConfig(group_size=BATCH)


def recipe(per: str = "step") -> TrainConfig:
    """The recipe in 20 steps; the average is quick, so that it depends on every step."""
    plan = ScheduleConfig(warmup_epochs=WARMUP, cooldown_epochs=COOLDOWN, per="epoch" if per == "epoch" else "step")
    return replace(TrainConfig(), epochs=float(EPOCHS), global_batch_size=BATCH, mix=MIX, schedule=plan, ema_decay=0.9)


def network() -> transxnet.TransXNet:
    """A small network in double precision, in training mode, the same on every machine."""
    model = small_network(CLASSES, SIDE).double().train()
    for name, value in model.state_dict().items():
        if value.is_floating_point() and value.dim() > 1:
            value.copy_(0.3 * _numbers(name, value.shape))
    return model


def samples(step: int) -> tuple[Tensor, Tensor]:
    """Images uint8 `[N, 3, H, W]` of coloured blocks, and labels int64 `[N]`, of a step."""
    stream = np.random.RandomState(1000 + step)
    blocks = stream.randint(0, 256, (BATCH, 3, SIDE // 8, SIDE // 8)).astype(np.uint8)
    labels = stream.randint(0, CLASSES, BATCH)
    return torch.from_numpy(blocks.repeat(8, 2).repeat(8, 3)), torch.from_numpy(labels)


def normalised(images: Tensor) -> Tensor:
    """The network's input, float64, of mixed images with values from 0 to 255."""
    return images.double() / 64 - 2


def fingerprint(name: str, value: Tensor) -> tuple[float, float]:
    """Norm of a tensor, and its product with a random direction of norm about 1 that belongs to the name."""
    flat = value.detach().double().flatten()
    direction = _numbers(name, flat.shape) / len(flat) ** 0.5
    return float(flat.norm()), float(flat @ direction)


def _numbers(name: str, shape: torch.Size) -> Tensor:
    """Normal numbers, float64, from a frozen stream that belongs to the name."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape)))
