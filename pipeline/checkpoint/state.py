"""The state in a checkpoint: what each rank stores, and how any number of ranks in any ZeRO stage loads it.

Every tensor is stored under `KIND|NAME|START`: elements from START on of the flattened tensor NAME. Kinds: `weight`,
`exp_avg`, `exp_avg_sq` (each element once over all ranks), `ema` (once), `buffer` and `ema_buffer` (each rank's own).
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from safetensors import safe_open

from pipeline.checkpoint.store import Checkpoint
from pipeline.common.errors import InputError
from pipeline.engine.ema import Ema
from pipeline.engine.engine import Engine


def state_tensors(engine: Engine, ema: Ema) -> dict[str, torch.Tensor]:
    """The tensors that this rank writes into a checkpoint: flat views of the live state, by stored name."""
    tensors: dict[str, torch.Tensor] = {}
    world = engine.world
    for number, fragment in enumerate(engine.fragments()):
        if engine.stage == 0 and number % world.size != world.rank:
            continue
        where = f"{fragment.name}|{fragment.start}"
        tensors[f"weight|{where}"] = fragment.weight
        tensors[f"exp_avg|{where}"] = fragment.exp_avg
        tensors[f"exp_avg_sq|{where}"] = fragment.exp_avg_sq
    for number, weight in enumerate(ema.weights):
        mine = ema.partitioned or number % world.size == world.rank
        if mine and weight.values.numel():
            tensors[f"ema|{weight.name}|{weight.start}"] = weight.values
    for name, buffer in engine.network.named_buffers():
        tensors[f"buffer|{name}|0"] = buffer.data.view(-1)
    for name, buffer in ema.buffers.items():
        tensors[f"ema_buffer|{name}|0"] = buffer.view(-1)
    return tensors


class _Stored:
    """The tensors in the files of all ranks of a checkpoint, read on demand."""

    def __init__(self, checkpoint: Checkpoint, stack: ExitStack) -> None:
        self._files = [
            stack.enter_context(safe_open(checkpoint.rank_file(rank), framework="pt"))
            for rank in range(checkpoint.world_size)
        ]
        self._pieces: dict[tuple[str, str], list[tuple[int, int, str]]] = defaultdict(list)
        for rank, file in enumerate(self._files):
            for key in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                kind, name, start = key.split("|")
                self._pieces[kind, name].append((int(start), rank, key))

    def by_rank(self, kind: str, name: str) -> list[torch.Tensor]:
        """Each rank's own tensor of this name, in the order of ranks."""
        return [self._files[rank].get_tensor(key) for _, rank, key in sorted(self._pieces[kind, name])]

    def read(self, kind: str, name: str, start: int, out: torch.Tensor) -> None:
        """Fill the flat `out` with the elements from `start` on, from the files of the ranks that hold them.

        Raises:
            ValueError: the checkpoint does not hold all of them.
        """
        end, filled = start + out.numel(), 0
        for begin, rank, key in self._pieces[kind, name]:
            piece = self._files[rank].get_slice(key)
            low, high = max(begin, start), min(begin + piece.get_shape()[0], end)
            if low < high:
                out[low - start : high - start].copy_(piece[low - begin : high - begin])
                filled += high - low
        if filled != out.numel():
            raise InputError(
                f"the checkpoint holds {filled} of {out.numel()} elements of {kind} {name}: it belongs to another model"
            )


@torch.no_grad()
def load_state(checkpoint: Checkpoint, engine: Engine, ema: Ema) -> None:
    """Load a verified checkpoint into the engine and the average, bit for bit, however it was partitioned.

    On the same number of ranks each rank gets its own BatchNorm statistics; otherwise every rank gets their mean.

    Raises:
        ValueError: the checkpoint belongs to another network.
    """
    with ExitStack() as stack:
        stored = _Stored(checkpoint, stack)
        for fragment in engine.fragments():
            for kind in ("weight", "exp_avg", "exp_avg_sq"):
                stored.read(kind, fragment.name, fragment.start, getattr(fragment, kind))
        for weight in engine.local_weights():
            stored.read("weight", weight.name, weight.start, weight.values)
        for weight in ema.weights:
            stored.read("ema", weight.name, weight.start, weight.values)
        for kind, name, buffer in _buffers(engine, ema):
            per_rank = stored.by_rank(kind, name)
            if checkpoint.world_size == engine.world.size:
                value = per_rank[engine.world.rank]
            elif buffer.is_floating_point():
                value = torch.stack(per_rank).mean(0)
            else:
                value = per_rank[0]
            buffer.copy_(value.view(buffer.shape))
    engine.load_scalars(checkpoint.manifest["scalars"])
    engine.refresh_weights()


@torch.no_grad()
def averaged_state(checkpoint: Checkpoint, shapes: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    """The averaged model in a verified checkpoint, equal to `Ema.full_state` when it was saved; needs no process group.

    Args:
        checkpoint: written by any number of ranks under any ZeRO stage.
        shapes: shape of every weight and buffer of the network.

    Raises:
        ValueError: the checkpoint belongs to another network.
    """
    state: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        stored = _Stored(checkpoint, stack)
        for name, shape in shapes.items():
            statistics = stored.by_rank("ema_buffer", name)
            counters = stored.by_rank("buffer", name)
            if statistics:
                state[name] = torch.stack(statistics).mean(0).view(shape)
            elif counters:
                state[name] = counters[0].view(shape)
            else:
                state[name] = torch.empty(shape)
                stored.read("ema", name, 0, state[name].view(-1))
    return state


def _buffers(engine: Engine, ema: Ema) -> Iterator[tuple[str, str, torch.Tensor]]:
    for name, buffer in engine.network.named_buffers():
        yield "buffer", name, buffer
    for name, buffer in ema.buffers.items():
        yield "ema_buffer", name, buffer


def state_summary(engine: Engine) -> dict[str, Any]:
    """The part of the state that the manifest holds: ZeRO stage, precision, and what is not a tensor."""
    return {"zero_stage": engine.stage, "precision": engine.config.precision, "scalars": engine.scalars()}
