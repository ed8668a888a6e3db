"""From shards to batches on the device, from any step on.

A rank runs `loader`, `split`, `source` and `pool`; a loader worker runs `worker`, `reader` and `slots`, without torch.
All processes of a node map one copy of the `index`. Remote shards go through the node's `cache`, which `prefetch` fills
before they are needed. `damaged_samples` says what takes the place of a sample that cannot be read; `audit` records
which rank read which sample.
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.data.audit import open_audit
    from pipeline.data.damaged_samples import DamagedSampleError
    from pipeline.data.loader import build_evaluation_loader, build_train_loader
    from pipeline.data.reader import LoaderError
    from pipeline.data.split import Split, open_split

__all__ = [
    "DamagedSampleError",
    "LoaderError",
    "Split",
    "build_evaluation_loader",
    "build_train_loader",
    "open_audit",
    "open_split",
]

__getattr__ = lazy_attributes(
    __name__,
    {
        "DamagedSampleError": "damaged_samples",
        "LoaderError": "reader",
        "Split": "split",
        "build_evaluation_loader": "loader",
        "build_train_loader": "loader",
        "open_audit": "audit",
        "open_split": "split",
    },
)
