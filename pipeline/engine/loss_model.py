"""The module that DeepSpeed runs: the network with the losses of its task."""

from collections.abc import Callable
from functools import reduce
from operator import add

from torch import Tensor, nn

Losses = Callable[..., dict[str, Tensor]]
"""Maps a network and its inputs to named losses, scalars in fp32 (`pipeline.tasks.Task.losses`)."""


class LossModel(nn.Module):
    """A network that returns the sum of its losses."""

    def __init__(self, model: nn.Module, losses: Losses) -> None:
        """Wrap a network with the losses of its task."""
        super().__init__()
        self.model = model
        self.losses = losses

    def forward(self, *inputs: Tensor) -> Tensor:
        """The sum of the losses, a scalar in fp32, of the inputs that the task's device transform gives."""
        return reduce(add, self.losses(self.model, *inputs).values())
