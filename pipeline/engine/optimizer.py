"""AdamW and its parameter groups: weight decay and layer-wise learning rates, divided as timm divides them."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.config.schema import OptimizerConfig, TrainConfig

_BLOCK = re.compile(r"(?:backbone\.)?stages\.(\d+)\.(?:blocks\.(\d+)\.)?")
_AFTER = 10**6
"""Number of the classifier's stage, after all others."""


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters with the same weight decay and learning rate."""

    names: tuple[str, ...]
    """Names of the parameters in the network."""
    weight_decay: float
    """Decoupled weight decay."""
    lr_scale: float
    """Factor of the training's learning rate."""


def parameter_groups(
    network: nn.Module, options: OptimizerConfig, published: Mapping[str, str] | None = None
) -> dict[str, ParameterGroup]:
    """Divide the parameters of a TransXNet into groups; each parameter is in one.

    1-D parameters and biases do not decay, so there are two groups; with `decay` `all` every parameter
    decays, and with `not-norm` every one whose published name does not contain `norm`. With
    `layer_decay` d each layer has two of its own, and the layer k before the last has d ** k times
    the learning rate (timm's `param_groups_layer_decay`). Layers are the stem, each block, and the classifier.

    Args:
        network: the network.
        options: what decays, and how much.
        published: name of each parameter in the published files, which `not-norm` goes by.

    Returns:
        The groups by name, sorted.
    """
    names = [name for name, _ in network.named_parameters()]
    layers = layer_numbers(names) if options.layer_decay < 1 else dict.fromkeys(names, 0)
    last = max(layers.values())
    members: dict[str, list[str]] = defaultdict(list)
    for name, parameter in network.named_parameters():
        is_plain = {
            "matrices": parameter.ndim <= 1 or name.endswith(".bias"),
            "not-norm": "norm" in (published or {}).get(name, name),
            "all": False,
        }[options.decay]
        kind = "plain" if is_plain else "decay"
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
    """Number of each parameter's layer in a TransXNet: the stem is 0, then the blocks in order, the classifier last.

    The downsampling and the position bias of a stage belong to the layer of its first block.
    """
    places = {name: _place(name) for name in names}
    order = {place: number for number, place in enumerate(sorted(set(places.values())))}
    return {name: order[place] for name, place in places.items()}


def _place(name: str) -> tuple[int, int]:
    """Stage and block of a parameter; the stem sorts first, the classifier last."""
    match = _BLOCK.match(name)
    if match is None:
        return (-1, 0) if name.removeprefix("backbone.").startswith("patch_embed.") else (_AFTER, 0)
    return int(match[1]), int(match[2] or 0)


def build_optimizer(
    model: nn.Module, groups: dict[str, ParameterGroup], config: TrainConfig, device: torch.device
) -> torch.optim.AdamW:
    """PyTorch's AdamW over groups of `model`'s parameters, given by name; fused on a GPU."""
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
