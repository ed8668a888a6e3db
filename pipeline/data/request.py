"""What a loader is asked for: the samples of a micro-batch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Request:
    """The samples that a micro-batch will hold.

    Attributes:
        rows: int64 [N], row of each sample in the index.
        epochs: int64 [N], epoch in which each sample is read.
        groups: int64 [N], mixing group of each sample.
        step: as in `Batch`.
        micro_step: as in `Batch`.
    """

    rows: NDArray[np.int64]
    epochs: NDArray[np.int64]
    groups: NDArray[np.int64]
    step: int
    micro_step: int
