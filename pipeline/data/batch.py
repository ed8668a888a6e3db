"""A batch, and the request that a reader makes one from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-batch of a rank.

    The images lie in memory that is used again once no tensor refers to it; on a GPU machine it is page-locked, and
    what was queued on the current stream by then is waited for.

    Attributes:
        images: uint8 [N, 3, H, W] on the CPU (strides of channels last).
        labels: int64 [N].
        indices: int64 [N], rows in the index.
        epochs: int64 [N], in which each sample is read.
        substitutes: int64 [N], the row that was read in a damaged one's place, or -1.
        step: optimizer step.
        micro_step: position among the micro-batches of the step.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    epochs: Tensor
    substitutes: Tensor
    step: int
    micro_step: int


@dataclass(frozen=True)
class Request:
    """What a batch is to hold."""

    rows: NDArray[np.int64]
    epochs: NDArray[np.int64]
    step: int
    micro_step: int
