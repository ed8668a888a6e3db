"""The parts of weights and optimizer state that this rank holds, under every ZeRO stage.

A fragment is a range of elements of one flattened parameter, with its fp32 weight and its Adam moments. Checkpoints
consist of fragments, so any number of ranks in any stage can load what others have saved.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.engine.flat import FlatModel, Slot


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """Elements [start, start + numel) of the flattened parameter `name`, as this rank holds them.

    `weight`, `exp_avg` and `exp_avg_sq` are flat fp32 views of the tensors that the optimizer updates.
    """

    name: str
    start: int
    weight: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class LocalWeight:
    """This rank's values of a parameter, as a flat view: all of them, or under stage 3 this rank's partition."""

    name: str
    start: int
    shape: torch.Size
    values: torch.Tensor


def optimized_tensors(model: nn.Module, optimizer: Any, stage: int) -> list[torch.Tensor]:
    """The tensors that AdamW updates on this rank: the parameters, or under ZeRO a flat partition of each group."""
    if stage == 0:
        return list(model.parameters())
    return optimizer.single_partition_of_fp32_groups if stage < 3 else optimizer.fp32_partitioned_groups_flat


def optimizer_states(
    model: nn.Module, optimizer: Any, torch_optimizer: torch.optim.Optimizer, stage: int
) -> list[dict[str, torch.Tensor]]:
    """AdamW's state of each optimized tensor; before the first step its moments are made, of zeros."""
    states = []
    on_device = bool(torch_optimizer.defaults.get("fused") or torch_optimizer.defaults.get("capturable"))
    for tensor in optimized_tensors(model, optimizer, stage):
        state = torch_optimizer.state[tensor]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device if on_device else "cpu")
            state["exp_avg"] = torch.zeros_like(tensor)
            state["exp_avg_sq"] = torch.zeros_like(tensor)
        states.append(state)
    return states


def iter_fragments(
    model: nn.Module, optimizer: Any, torch_optimizer: torch.optim.Optimizer, stage: int, rank: int
) -> Iterator[Fragment]:
    """Yield the fragments that this rank holds: all under stage 0, else its share of the network.

    Args:
        model: what DeepSpeed trains: the network, or a `FlatModel` around it, whose fragments get the network's names.
        optimizer: DeepSpeed's optimizer (`engine.optimizer`), or the plain one under stage 0.
        torch_optimizer: the AdamW inside it.
        stage: ZeRO stage, 0 to 3.
        rank: this rank.
    """
    optimizer_states(model, optimizer, torch_optimizer, stage)
    for name, parameter in model.named_parameters():
        if stage == 0:
            state = torch_optimizer.state[parameter]
            flat = (parameter.data, state["exp_avg"], state["exp_avg_sq"])
            start, length, offset = 0, parameter.numel(), 0
        elif stage < 3:
            mapping = getattr(parameter, "_hp_mapping", None)
            if mapping is None:
                continue
            master = mapping.hp_fragment
            group = next(g for g in optimizer.single_partition_of_fp32_groups if _holds(g, master))
            state = torch_optimizer.state[group]
            flat = (group, state["exp_avg"], state["exp_avg_sq"])
            start, length = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
            offset = mapping.hp_fragment_address.start
        else:
            index, offset, partition = optimizer.grad_position[optimizer.get_param_id(parameter)]
            group = optimizer.fp32_partitioned_groups_flat[index]
            state = torch_optimizer.state[group]
            flat = (group, state["exp_avg"], state["exp_avg_sq"])
            start = rank * partition
            length = max(0, min(partition, parameter.ds_shape.numel() - start))  # pyright: ignore[reportAttributeAccessIssue]
            if not length:
                continue
        weight, exp_avg, exp_avg_sq = (t.view(-1).narrow(0, offset, length) for t in flat)
        whole = Fragment(name=name, start=start, weight=weight, exp_avg=exp_avg, exp_avg_sq=exp_avg_sq)
        if isinstance(model, FlatModel):
            yield from _by_slot(whole, model.layout[name])
        else:
            yield whole


def _by_slot(flat: Fragment, slots: Iterable[Slot]) -> Iterator[Fragment]:
    """Cut a fragment of a flat parameter at the slots, and give the pieces the names of the network's parameters."""
    end = flat.start + flat.weight.numel()
    for slot in slots:
        low, high = max(flat.start, slot.offset), min(end, slot.offset + slot.shape.numel())
        if low < high:
            part = slice(low - flat.start, high - flat.start)
            yield Fragment(
                name=slot.name,
                start=low - slot.offset,
                weight=flat.weight[part],
                exp_avg=flat.exp_avg[part],
                exp_avg_sq=flat.exp_avg_sq[part],
            )


def _holds(flat: torch.Tensor, part: torch.Tensor) -> bool:
    first, last = flat.data_ptr(), flat.data_ptr() + flat.numel() * flat.element_size()
    return first <= part.data_ptr() < last


def local_weights(model: nn.Module, stage: int, rank: int) -> list[LocalWeight]:
    """This rank's views of all parameters of the network, without the padding of stage 3."""
    if isinstance(model, FlatModel):
        return [
            LocalWeight(name=slot.name, start=0, shape=slot.shape, values=flat[slot.offset :][: slot.shape.numel()])
            for group, slots in model.layout.items()
            for flat in [model.get_parameter(group).data]
            for slot in slots
        ]
    views = []
    for name, parameter in model.named_parameters():
        if stage < 3:
            views.append(LocalWeight(name=name, start=0, shape=parameter.shape, values=parameter.data.view(-1)))
        else:
            partition: torch.Tensor = parameter.ds_tensor  # pyright: ignore[reportAttributeAccessIssue]
            shape: torch.Size = parameter.ds_shape  # pyright: ignore[reportAttributeAccessIssue]
            start = rank * partition.numel()
            length = max(0, min(partition.numel(), shape.numel() - start))
            values = partition.data.view(-1)[:length]
            views.append(LocalWeight(name=name, start=min(start, shape.numel()), shape=shape, values=values))
    return views


def float_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    """The floating-point buffers of `model` by name: BatchNorm's running statistics."""
    return {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
