"""The network of a config, and the seeds of its randomness."""

from typing import Any

import torch
from torch import nn

from pipeline.config.schema import TrainConfig


def build_model(config: TrainConfig, num_classes: int) -> nn.Module:
    """The network of `config`, its weights drawn from the seed alone."""
    import transxnet

    settings: dict[str, Any] = {
        "num_classes": num_classes,
        "image_size": config.model.image_size,
        "backend": config.model.backend,
    }
    if config.model.drop_path_rate is not None:
        settings["drop_path_rate"] = config.model.drop_path_rate
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return transxnet.build(config.model.name, **settings)
