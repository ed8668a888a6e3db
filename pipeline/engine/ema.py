"""Exponential moving average of weights and BatchNorm statistics, held as each rank holds the weights themselves."""

import torch
import torch.distributed as dist
from torch import nn

from pipeline.engine.fragments import LocalWeight, float_buffers


class Ema:
    """After every step ema = decay * ema + (1 - decay) * value, as timm's `ModelEmaV2` does it; decay 0 just follows.

    Under ZeRO stage 3 each rank averages its partitions alone; below, every rank averages everything. BatchNorm
    statistics are each rank's own and are averaged over ranks where the whole state is asked for.
    """

    def __init__(self, weights: list[LocalWeight], model: nn.Module, decay: float, *, partitioned: bool) -> None:
        """Start from the present values of `weights` and of the model's buffers."""
        self.decay = decay
        self.partitioned = partitioned
        self._model = model
        self._live_weights = weights
        self._live_buffers = float_buffers(model)
        self.weights = [
            LocalWeight(name=w.name, start=w.start, shape=w.shape, values=w.values.clone()) for w in weights
        ]
        self.buffers = {name: buffer.clone() for name, buffer in self._live_buffers.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the model's present values: one dispatched operation over all tensors."""
        average = [w.values for w in self.weights if w.values.numel()] + list(self.buffers.values())
        live = [w.values for w in self._live_weights if w.values.numel()] + list(self._live_buffers.values())
        torch._foreach_lerp_(average, live, 1.0 - self.decay)

    @torch.no_grad()
    def full_state(self) -> dict[str, torch.Tensor]:
        """The averaged model as a complete state dict on every rank's device. Collective.

        BatchNorm statistics are the mean over ranks; integer buffers are the model's.
        """
        weights = self._gathered_weights() if self.partitioned else {w.name: w.values for w in self.weights}
        shapes = {w.name: w.shape for w in self.weights}
        state = {name: values.view(shapes[name]).clone() for name, values in weights.items()}
        if self.buffers:
            flat = torch.cat([b.flatten() for b in self.buffers.values()])
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
            parts = flat.split([b.numel() for b in self.buffers.values()])
            state |= {n: part.view_as(b) for (n, b), part in zip(self.buffers.items(), parts, strict=True)}
        state |= {n: b.clone() for n, b in self._model.named_buffers() if not b.is_floating_point()}
        return state

    def _gathered_weights(self) -> dict[str, torch.Tensor]:
        """Every rank's partitions put together: one gather of all of them padded to one length."""
        world = dist.get_world_size()
        partitions = [-(-w.shape.numel() // world) for w in self.weights]
        mine = torch.cat(
            [
                torch.nn.functional.pad(w.values, (0, size - w.values.numel()))
                for w, size in zip(self.weights, partitions, strict=True)
            ]
        )
        everyone = [torch.empty_like(mine) for _ in range(world)]
        dist.all_gather(everyone, mine)
        by_rank = [flat.split(partitions) for flat in everyone]
        return {
            w.name: torch.cat([by_rank[rank][i] for rank in range(world)])[: w.shape.numel()]
            for i, w in enumerate(self.weights)
        }
