"""Many parameters as a few: the network's weights are views of one flat parameter for each decay group.

DeepSpeed, AdamW and the gradient reduction then handle two tensors instead of a thousand. Names, shapes and values stay
those of the network: checkpoints and exports cannot tell the difference.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

ALIGNMENT = 8
"""Weights of a multiple of this many elements come first, so that they lie at multiples of 32 bytes (vector loads)."""


@dataclass(frozen=True)
class Slot:
    """Where a parameter lies in its flat one."""

    name: str
    offset: int
    shape: torch.Size


Layout = Mapping[str, tuple[Slot, ...]]
"""Flat parameter's name to its slots, in order of offset, without gaps."""


class FlatModel(nn.Module):
    """Runs `network` with weights that are views of flat parameters; `network` is emptied of its own.

    Attributes:
        network: what computes; its parameters are plain tensors, set anew before each forward.
        layout: where each of its parameters lies.
    """

    def __init__(self, network: nn.Module, groups: Mapping[str, list[str]]) -> None:
        """Move the parameters of `network` into one flat parameter for each entry of `groups`.

        Args:
            network: all its parameters are fp32 and contiguous; each has one owner.
            groups: name of the flat parameter to the names of its parts; every parameter in exactly one.

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
        self._homes: dict[str, list[tuple[nn.Module, str, torch.Size]]] = {}
        for group, names in groups.items():
            slots, offset = [], 0
            for name in sorted(names, key=lambda name: own[name].numel() % ALIGNMENT > 0):
                slots.append(Slot(name, offset, own[name].shape))
                offset += own[name].numel()
            flat = torch.cat([own[slot.name].detach().flatten() for slot in slots])
            layout[group], self._sizes[group] = tuple(slots), [slot.shape.numel() for slot in slots]
            self._homes[group] = [self._evict(network, slot) for slot in slots]
            self.register_parameter(group, nn.Parameter(flat))
        self.network = network
        self.layout: Layout = layout

    @staticmethod
    def _evict(network: nn.Module, slot: Slot) -> tuple[nn.Module, str, torch.Size]:
        path, _, leaf = slot.name.rpartition(".")
        owner = network.get_submodule(path)
        del owner._parameters[leaf]
        return owner, leaf, slot.shape

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """What `network` makes of images `[N, 3, H, W]`. The gradient of a flat parameter is one concatenation."""
        for group, homes in self._homes.items():
            parts = self.get_parameter(group).split(self._sizes[group])
            for part, (owner, leaf, shape) in zip(parts, homes, strict=True):
                owner.__dict__[leaf] = part.view(shape)
        return self.network(images)
