"""Many parameters as a few: the network's weights are views of one flat parameter for each decay group.

DeepSpeed, AdamW and the gradient reduction then handle two tensors instead of a thousand. Checkpoints and exports keep
the names and shapes of the network.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

ALIGNMENT = 8
"""Weights whose size is a multiple of this come first, so that they begin at multiples of 32 bytes (vector loads)."""


@dataclass(frozen=True)
class Slot:
    """Place of a parameter in its flat parameter."""

    name: str
    offset: int
    shape: torch.Size


Layout = Mapping[str, tuple[Slot, ...]]
"""Slots of each flat parameter by its name, in order of offset, without gaps."""


class FlatModel(nn.Module):
    """Runs a network whose weights are views of flat parameters instead of parameters of its own.

    Attributes:
        network: the network; its weights are plain tensors that every forward sets to views of the flat parameters.
        layout: place of each weight in the flat parameters.
    """

    def __init__(self, network: nn.Module, groups: Mapping[str, list[str]]) -> None:
        """Move the parameters of `network` into one flat parameter for each entry of `groups`.

        Args:
            network: its parameters are fp32 and contiguous, and none is shared by two modules.
            groups: names of the parameters in each flat parameter; every parameter is in exactly one.

        Raises:
            ValueError: a parameter is in no group.
        """
        super().__init__()
        own = dict(network.named_parameters())
        missing = own.keys() - {name for names in groups.values() for name in names}
        if missing:
            raise ValueError(f"parameters without a group: {', '.join(sorted(missing)[:3])}")
        layout: dict[str, tuple[Slot, ...]] = {}
        self._sizes: dict[str, list[int]] = {}
        self._owners: dict[str, list[tuple[nn.Module, str, torch.Size]]] = {}
        for group, names in groups.items():
            slots, offset = [], 0
            for name in sorted(names, key=lambda name: own[name].numel() % ALIGNMENT > 0):
                slots.append(Slot(name, offset, own[name].shape))
                offset += own[name].numel()
            flat = torch.cat([own[slot.name].detach().flatten() for slot in slots])
            layout[group], self._sizes[group] = tuple(slots), [slot.shape.numel() for slot in slots]
            self._owners[group] = [self._remove(network, slot) for slot in slots]
            self.register_parameter(group, nn.Parameter(flat))
        self.network = network
        self.layout: Layout = layout

    @staticmethod
    def _remove(network: nn.Module, slot: Slot) -> tuple[nn.Module, str, torch.Size]:
        path, _, leaf = slot.name.rpartition(".")
        owner = network.get_submodule(path)
        del owner._parameters[leaf]
        return owner, leaf, slot.shape

    def forward(self, *inputs: torch.Tensor) -> Any:
        """The network's output for its inputs. The gradient of a flat parameter is one concatenation."""
        for group, owners in self._owners.items():
            parts = self.get_parameter(group).split(self._sizes[group])
            for part, (owner, leaf, shape) in zip(parts, owners, strict=True):
                owner.__dict__[leaf] = part.view(shape)
        return self.network(*inputs)
