"""State that a training resumes from, on any number of ranks and in any ZeRO stage.

`state` says what is stored, `writer` writes one rank's file behind the training, `store` publishes and verifies the
folder of a step, `saver` decides when.
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.checkpoint.saver import Saver
    from pipeline.checkpoint.store import CheckpointStore, DamagedCheckpointError

__all__ = ["CheckpointStore", "DamagedCheckpointError", "Saver"]

__getattr__ = lazy_attributes(
    __name__,
    {"CheckpointStore": "store", "DamagedCheckpointError": "store", "Saver": "saver"},
)
