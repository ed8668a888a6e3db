"""Which parameters decay and how fast each layer learns, as timm divides them."""

import re
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.config.schema import OptimizerConfig, TrainConfig

_BLOCK = re.compile(r"stages\.(\d+)\.(?:blocks\.(\d+)\.)?")
_AFTER = 10**6
"""Where the classifier stands among the stages."""


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that AdamW treats alike."""

    names: tuple[str, ...]
    """Of the network's parameters."""
    weight_decay: float
    """Decoupled weight decay."""
    lr_scale: float
    """Factor of the learning rate."""


def parameter_groups(network: nn.Module, options: OptimizerConfig) -> dict[str, ParameterGroup]:
    """The groups of a TransXNet's parameters by name, each parameter in one; without layer decay there are two.

    1-D parameters and biases do not decay. With `layer_decay` d, a layer that stands k layers before the last learns
    with d ** k of the rate (timm's `param_groups_layer_decay`); layers are the stem, each block, and the classifier.
    """
    names = [name for name, _ in network.named_parameters()]
    layers = layer_numbers(names) if options.layer_decay < 1 else dict.fromkeys(names, 0)
    last = max(layers.values())
    members: dict[str, list[str]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        kind = "plain" if parameter.ndim <= 1 or name.endswith(".bias") else "decay"
        members[kind if not last else f"layer{layers[name]:02d}_{kind}"].append(name)
    return {
        group: ParameterGroup(
            names=tuple(members[group]),
            weight_decay=options.weight_decay if group.endswith("decay") else 0.0,
            lr_scale=options.layer_decay ** (last - layers[members[group][0]]),
        )
        for group in sorted(members)
    }


def layer_numbers(names: list[str]) -> dict[str, int]:
    """The layer of each parameter of a TransXNet: 0 the stem, then the blocks in order, then the classifier.

    What a stage has before its blocks (the downsampling, the position bias) belongs to its first block.
    """
    places = {name: _place(name) for name in names}
    order = {place: number for number, place in enumerate(sorted(set(places.values())))}
    return {name: order[place] for name, place in places.items()}


def _place(name: str) -> tuple[int, int]:
    """Stage and block, in an order that puts the stem first and the classifier last."""
    match = _BLOCK.match(name)
    if match is None:
        return (-1, 0) if name.startswith("patch_embed.") else (_AFTER, 0)
    return int(match[1]), int(match[2] or 0)


def build_optimizer(
    model: nn.Module, groups: dict[str, ParameterGroup], config: TrainConfig, device: torch.device
) -> torch.optim.AdamW:
    """PyTorch's AdamW over `groups` of names of `model`'s parameters, fused on a GPU: no compiler is needed."""
    options = config.optimizer
    parameters = [
        {
            "params": [model.get_parameter(name) for name in group.names],
            "weight_decay": group.weight_decay,
            "lr_scale": group.lr_scale,
        }
        for group in groups.values()
    ]
    return torch.optim.AdamW(parameters, lr=0.0, betas=options.betas, eps=options.eps, fused=device.type == "cuda")
