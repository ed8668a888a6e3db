"""Count the launches and bytes of a training step without a GPU.

The model runs forward and backward on meta tensors, which have shapes but no data. Every operation that is not a view
counts as one launch that reads each of its input tensors once and writes each of its results once. Some library
operators read twice, which is counted: norms read for the statistics and for the values, and a convolution's backward
reads the output's gradient for the input and for the weight. A kernel of this package counts the tensors passed to it.
An implementation of the same operations cannot move fewer bytes, so a time computed from the count is a bound, not a
measurement. Memory that the forward saves for the backward is counted once for each storage, without weights.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import transxnet
from transxnet import backend as backends
from transxnet.block import Block

# How often an operator reads its inputs, where that is not once.
READS = {
    "native_batch_norm": 2,
    "cudnn_batch_norm": 2,
    "_native_batch_norm_legit_functional": 2,
    "_batch_norm_with_update": 2,
    "native_group_norm": 2,
    "native_batch_norm_backward": 2,
    "batch_norm_backward": 2,
    "native_group_norm_backward": 2,
}
SILENT = (
    "empty",
    "empty_like",
    "new_empty",
    "new_empty_strided",
    "empty_strided",
    "detach",
    "_unsafe_view",
    "lift_fresh",
)


@dataclass
class Traffic:
    """Launches and bytes of each operator, forward and backward together."""

    launches: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    forward_launches: int = 0
    saved: int = 0
    """Bytes that the forward saves for the backward."""
    kernels: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    """Every launch of a kernel of this package: the kernel, and its arguments with its grid."""

    def add(self, name: str, tensors: list[Tensor], results: list[Tensor], reads: int = 1) -> None:
        """Count one launch that reads `tensors` and writes `results`."""
        self.launches[name] += 1
        read = sum({id(t): t.numel() * t.element_size() for t in tensors}.values())
        written = sum({id(t): t.numel() * t.element_size() for t in results}.values())
        self.moved[name] += reads * read + written


class _Counting(TorchDispatchMode):
    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        is_view = any(argument.alias_info and not argument.alias_info.is_write for argument in func._schema.arguments)
        if not is_view and name not in SILENT:
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
            results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
            if name == "convolution_backward":
                tensors.append(tensors[0].view(tensors[0].shape))
            self.traffic.add(name, tensors, results, READS.get(name, 1))
        return out


@contextlib.contextmanager
def kernels_counted(traffic: Traffic) -> Iterator[None]:
    """Count the launches of kernels instead of running them."""
    from triton.runtime.jit import JITFunction

    def run(self: Any, *args: Any, **kwargs: Any) -> SimpleNamespace:
        given = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
        assert any(isinstance(value, Tensor) for value in given.values()), given.keys()
        traffic.add(self.fn.__name__, [value for value in given.values() if isinstance(value, Tensor)], [])
        traffic.kernels.append((self, given))
        return SimpleNamespace()

    with mock.patch.object(JITFunction, "run", run), mock.patch.object(backends, "_interprets", return_value=True):
        yield


@contextlib.contextmanager
def _saved_counted(traffic: Traffic, model: nn.Module) -> Iterator[None]:
    """Add up the bytes that autograd saves, each storage once."""
    seen = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            traffic.saved += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield


def count_step(
    name: str, backend: str, *, batch: int, size: int = 224, dtype: torch.dtype = torch.bfloat16, **settings: Any
) -> Traffic:
    """Count a forward and backward of the variant `name` with `settings` replaced, and activations in `dtype`.

    Parameters that kernels read are in fp32, as in training. Those that PyTorch's own operators read are in `dtype`, as
    under autocast, without the casts.
    """
    with torch.device("meta"):
        model = transxnet.build(name, **{"image_size": size, "backend": backend, **settings}).to(dtype)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) or (isinstance(module, Block) and backend == "triton"):
                module.float()
        images = torch.empty(batch, 3, size, size, dtype=dtype)
        traffic = Traffic()
        with kernels_counted(traffic), _Counting(traffic):
            with _saved_counted(traffic, model):
                out = model.train()(images).float().sum()
            traffic.forward_launches = sum(traffic.launches.values())
            out.backward()
    return traffic
