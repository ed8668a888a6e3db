"""Choose the backend of each operator: the kernels or plain PyTorch."""

import functools
import importlib.util
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from transxnet.config import Backend

__all__ = ["leave_to_pytorch", "left_to_pytorch", "norm_has_kernels", "norm_is_plain", "use_triton"]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


_LEFT_TO_PYTORCH: set[str] = set()
"""Operators whose kernels this process does not trust."""


def leave_to_pytorch(operators: Iterable[str]) -> None:
    """Run these operators (names of `transxnet.check`) in plain PyTorch, whatever the backend, and no others."""
    _LEFT_TO_PYTORCH.clear()
    _LEFT_TO_PYTORCH.update(operators)


def left_to_pytorch() -> frozenset[str]:
    """Return the operators that run in plain PyTorch, whatever the backend."""
    return frozenset(_LEFT_TO_PYTORCH)


def use_triton(backend: Backend, x: Tensor, operator: str = "") -> bool:
    """Return whether `operator` on `x` runs on the kernels.

    `auto` uses them on CUDA devices of compute capability 8.0 or more, in fp32, bf16 and fp16. Everything else, and
    everything that torch.compile traces, runs in plain PyTorch, and so do the operators of `leave_to_pytorch`.

    Raises:
        ValueError: the backend is `triton` and the kernels do not support the device or the dtype of `x`.
    """
    if backend == "reference":
        return False
    runs = (
        x.dtype in _DTYPES
        and _has_triton()
        and (_interprets() or (x.is_cuda and _capability(x.device.index or 0) >= 8))
    )
    if backend == "triton" and not runs:
        raise ValueError(
            "backend 'triton' needs triton, a CUDA device of compute capability 8.0 or more and fp32, bf16 or fp16, "
            f"but got {x.dtype} on {x.device}. Choose backend 'auto' or 'reference'"
        )
    if operator in _LEFT_TO_PYTORCH:
        return False
    if backend == "auto":
        return runs and x.is_cuda and not torch.compiler.is_compiling()
    return runs


def norm_is_plain(norm: nn.Module) -> bool:
    """Return whether `norm` is an `nn.BatchNorm2d`, not replaced by a trainer, with weights and running statistics."""
    return type(norm) is nn.BatchNorm2d and _is_complete(norm)


def norm_has_kernels(norm: nn.Module) -> bool:
    """Return whether the kernels support `norm`: a BatchNorm or SyncBatchNorm with weights and running statistics."""
    return type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm) and _is_complete(norm)


def _is_complete(norm: Any) -> bool:
    return norm.affine and norm.track_running_stats and norm.momentum is not None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _interprets() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _capability(index: int) -> int:
    return torch.cuda.get_device_capability(index)[0]
