"""The training itself: `torchrun -m pipeline.train RUN_DIR`, or `TrainTask` as a job.

From the outside in: `job_task` (what `jobs` runs), `attempt` (one process group's life), `loop` (the loop). Beside it,
with `--evaluate job` or `allocation`: `evaluation_process` (submits), `evaluation_task` (what these jobs run),
`late_evaluation` (the work), `completion` (the end, for whoever comes last).
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.train.job_task import TrainTask
    from pipeline.train.loop import Training

__all__ = ["TrainTask", "Training"]

__getattr__ = lazy_attributes(
    __name__,
    {"TrainTask": "job_task", "Training": "loop"},
)
