"""What a training records of a step: one line of `metrics.jsonl`."""

import resource
import time
from typing import Any

import torch

from pipeline.config.schema import TrainConfig
from pipeline.engine.distributed import World


def step_record(
    config: TrainConfig,
    world: World,
    *,
    step: int,
    loss: float,
    lr: float,
    grad_norm: float,
    loss_scale: float,
    seconds: float,
    data_wait_s: float,
    others_wait_s: float,
) -> dict[str, Any]:
    """The record of a finished step.

    Args:
        config: of the training.
        world: this rank, whose memory is recorded.
        step: number of the step, counted from 1.
        loss: mean over all ranks.
        lr: learning rate of the step.
        grad_norm: norm of the gradient of all ranks, before clipping.
        loss_scale: factor of the loss under fp16.
        seconds: duration of the step, with the time it waited for its batches.
        data_wait_s: seconds of it that this rank waited for its batches.
        others_wait_s: seconds of it that this rank waited for other ranks.
    """
    record: dict[str, Any] = {
        "step": step,
        "time": time.time(),
        "loss": loss,
        "lr": lr,
        "grad_norm": grad_norm,
        "images_per_s": config.global_batch_size / seconds,
        "step_s": seconds,
        "data_wait": min(1.0, data_wait_s / seconds),
        "others_wait": min(1.0, others_wait_s / seconds),
        "memory_mb": peak_memory_mb(world),
    }
    if config.precision == "fp16":
        record["loss_scale"] = loss_scale
    return record


def peak_memory_mb(world: World) -> float:
    """Peak memory of this rank, in 10^6 bytes: the GPU's, or the process's where there is none."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
