"""The command `python -m pipeline.evaluate MODEL --shards U`: the scores of a model of any task on any shards.

`measure` makes one pass over a split, in which the task measures the model. `log` adds the result to the model's MLflow
run.
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.evaluate.measure import evaluate

__all__ = ["evaluate"]

__getattr__ = lazy_attributes(__name__, {"evaluate": "measure"})
