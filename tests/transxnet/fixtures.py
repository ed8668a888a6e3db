"""Weights and images that are the same in every run, and the distance between tensors."""

import math
import zlib

import numpy as np
import torch
from torch import Tensor

from transxnet import TransXNet, to_upstream


def filled_state(model: TransXNet) -> dict[str, Tensor]:
    """Return a state dict with upstream's names, each entry drawn from a generator seeded by its name.

    The values are large enough that every entry affects the output.
    """
    return {key: fill(key, tuple(value.shape)) for key, value in to_upstream(model.state_dict()).items()}


def images(count: int, height: int, width: int | None = None) -> Tensor:
    """Return random images `[count, 3, height, width]`, float32."""
    shape = (count, 3, height, width or height)
    return torch.from_numpy(np.random.RandomState(20231030).standard_normal(shape).astype(np.float32))


def distance(actual: Tensor, expected: Tensor) -> float:
    """Return the relative L2 distance."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return ((actual - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def fill(key: str, shape: tuple[int, ...]) -> Tensor:
    """Return an entry under upstream's name, drawn from a generator seeded by the name."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    z = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key.endswith("running_var"):
        z = 0.5 + np.abs(z)
    elif key.startswith("relative_pos_enc"):
        z = 0.5 * z
    elif "layer_scale" in key and key.endswith("weight"):
        z = 0.3 * z
    elif "local_unit.weight" in key:
        z = z / math.sqrt(shape[-1] * shape[-2])
    elif len(shape) >= 2:
        z = z / math.sqrt(np.prod(shape[1:]))
    elif key.endswith("weight"):
        z = 1 + 0.1 * z
    else:
        z = 0.1 * z
    return torch.from_numpy(np.ascontiguousarray(z, dtype=np.float32))
