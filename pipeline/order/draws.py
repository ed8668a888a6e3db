"""Random numbers as a pure function of their purpose: a counter-based generator whose keys are integers.

The generators of numpy and torch are streams: a number depends on all draws before it, and a generator for every
sample costs more than decoding some images. Here a draw is a hash of (seed, purpose, epoch, sample, number of the
draw). Whole batches are drawn at once, and every version of numpy gives the same numbers. The hash is SplitMix64's
finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.config.schema import TrainConfig

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_ALL = (1 << 64) - 1


class Purpose(IntEnum):
    """Purpose of a draw: part of its key, so that two uses of one seed are independent."""

    SHARDS = 1
    BLOCK = 2
    CROP = 3
    RAND_AUGMENT = 4
    FLIP = 5
    ERASING = 6
    MIX = 7
    SUBSTITUTE = 8
    FAITHFUL = 9
    SEGMENT = 10
    DISTORT = 11
    DETECT = 12
    SAMPLER = 13


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser, elementwise: a bijection in which each input bit flips half the 64 output bits."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(_FIRST)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(_SECOND)
    return bits ^ (bits >> np.uint64(31))


def _mix_one(bits: int) -> int:
    """`_mix` of one Python integer, in a tenth of the time of an array with one element."""
    bits = (bits ^ (bits >> 30)) * _FIRST & _ALL
    bits = (bits ^ (bits >> 27)) * _SECOND & _ALL
    return bits ^ (bits >> 31)


def key(*names: ArrayLike) -> NDArray[np.uint64]:
    """Hash integers, broadcast against each other, to 64 bits; their order matters.

    Args:
        names: numbers or arrays of integers of any sign, such as seed, purpose, epoch, samples.

    Returns:
        The keys, in the shape that the names broadcast to.
    """
    single, singles = 0, 0
    for name in names:
        if not isinstance(name, int | np.integer):
            break
        single = _mix_one(((single ^ _mix_one((int(name) + _GOLDEN) & _ALL)) + _GOLDEN) & _ALL)
        singles += 1
    state = np.array(single, np.uint64)
    with np.errstate(over="ignore"):
        for name in names[singles:]:
            value = np.asarray(name).astype(np.int64).astype(np.uint64)
            state = _mix((state ^ _mix(value + np.uint64(_GOLDEN))) + np.uint64(_GOLDEN))
    return np.asarray(state)


def bits(keys: NDArray[np.uint64], count: int) -> NDArray[np.uint64]:
    """Return `count` independent 64-bit draws for each key: uint64 [*keys.shape, count]."""
    with np.errstate(over="ignore"):
        counters = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
        return _mix(keys[..., None] + counters)


def uniforms(keys: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """Return `count` uniform draws in [0, 1) for each key: float64 [*keys.shape, count]."""
    return (bits(keys, count) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(key: NDArray[np.uint64], size: int) -> NDArray[np.int64]:
    """Return a uniformly drawn permutation of 0 … size-1 that depends on the key alone: int64 [size]."""
    return np.argsort(bits(key.reshape(()), size), kind="stable")


def step_seed(config: TrainConfig, step: int, rank: int) -> int:
    """Return the seed of drop path and dropout in a rank's first micro-batch of a step.

    No random state is carried from step to step. Micro-batch m of rank r has the seed of rank m * world_size + r.
    """
    return (config.seed * 1_000_003 + step) * 65_537 + rank
