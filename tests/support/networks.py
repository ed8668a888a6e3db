"""A network that is quick to train on a CPU."""

import torch

import transxnet


def small_network(num_classes: int, image_size: int, drop_path_rate: float = 0.0) -> transxnet.TransXNet:
    """A TransXNet of one block a stage and few channels, the same at each call."""
    config = transxnet.TransXNetConfig(
        name="small",
        depths=(1, 1, 1, 1),
        dims=(8, 8, 12, 16),
        num_heads=(1, 1, 2, 2),
        num_groups=(2, 2, 2, 2),
        layer_scale_init=0.5,
        num_classes=num_classes,
        image_size=image_size,
        drop_path_rate=drop_path_rate,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return transxnet.TransXNet(config)
