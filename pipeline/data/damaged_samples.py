"""Samples that are damaged, and the samples that replace them (`--train.data.on-damage replace`)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import PipelineError
from pipeline.order import draws

SUBSTITUTES = 16
"""Candidates that are drawn for the place of a damaged sample; the first that can be read takes it."""


class DamagedSampleError(PipelineError, ValueError):
    """A sample differs from the index, or its image cannot be decoded; the message names the shard and the key."""


@dataclass(frozen=True)
class Replacement:
    """A damaged sample and its substitute.

    Attributes:
        row: row of the damaged sample in the index.
        substitute: row of the sample that was read in its place.
        reason: what is wrong with the damaged sample, with its shard and key.
    """

    row: int
    substitute: int
    reason: str


def replace(row: int, epoch: int, seed: int, num_samples: int, read: Callable[[int], None], name: str) -> int:
    """Read another sample in place of a damaged one; return the row of the substitute.

    The substitute depends on (seed, epoch, row) alone, so every rank and worker chooses the same one.

    Args:
        row: row of the damaged sample in the index.
        epoch: epoch in which the sample is read.
        seed: seed of the training.
        num_samples: size of the split.
        read: reads the sample of a row into the place of the damaged one.
        name: the damaged sample as messages name it.

    Raises:
        DamagedSampleError: all candidates are damaged as well.
    """
    last: DamagedSampleError | None = None
    for candidate in draw_substitutes(seed, epoch, row, num_samples).tolist():
        try:
            read(candidate)
            return candidate
        except DamagedSampleError as error:
            last = error
    raise DamagedSampleError(f"{name} is damaged, as are all {SUBSTITUTES} substitutes drawn for it; the last: {last}")


def draw_substitutes(seed: int, epoch: int, row: int, num_samples: int) -> NDArray[np.int64]:
    """Draw the candidates for the place of a damaged sample: int64 [SUBSTITUTES], rows of the index.

    Args:
        seed: seed of the training.
        epoch: epoch in which the sample is read.
        row: row of the damaged sample.
        num_samples: size of the split.
    """
    candidates = draws.bits(draws.key(seed, draws.Purpose.SUBSTITUTE, epoch, row), SUBSTITUTES)
    return (candidates % np.uint64(num_samples)).astype(np.int64)
