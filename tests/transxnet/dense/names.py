"""Weights that are the same in every run, and a digest of the published names, for the dense networks."""

import hashlib
from typing import TypeVar

from torch import nn

from tests.transxnet.fixtures import fill
from transxnet.dense import from_upstream, to_upstream

Network = TypeVar("Network", bound=nn.Module)


def filled(network: Network) -> Network:
    """Fill a dense network's entries from generators seeded by their published names."""
    state = to_upstream(network.state_dict())
    values = {key: fill(key.removeprefix("backbone."), tuple(value.shape)) for key, value in state.items()}
    network.load_state_dict(from_upstream(values))
    return network


def names_digest(network: nn.Module) -> str:
    """Return the sha256 of the sorted lines "key shape" under the published names."""
    lines = sorted(f"{key} {list(value.shape)}" for key, value in to_upstream(network.state_dict()).items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
