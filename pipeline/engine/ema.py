"""Exponential moving average of the weights and of the BatchNorm statistics, partitioned as the weights are."""

import torch
import torch.distributed as dist
from torch import nn

from pipeline.engine.fragments import LocalWeight, float_buffers


class Ema:
    """After every step average = decay * average + (1 - decay) * value, as timm's `ModelEmaV2`.

    With decay 0 the average equals the value.

    Under ZeRO stage 3 each rank averages its own partitions; in the other stages every rank averages everything.
    BatchNorm statistics are each rank's own; `full_state` returns their mean over the ranks.
    """

    def __init__(self, weights: list[LocalWeight], model: nn.Module, decay: float, *, partitioned: bool) -> None:
        """Start from the current values.

        Args:
            weights: this rank's views of the weights; they are read at every update.
            model: the network, whose floating-point buffers are averaged too.
            decay: of the average, in [0, 1).
            partitioned: whether `weights` are partitions (ZeRO stage 3).
        """
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
        """Move the average towards the current values, in one dispatched operation over all tensors."""
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
        """The whole weights: one all-gather of all partitions, each padded to the same length on every rank."""
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
