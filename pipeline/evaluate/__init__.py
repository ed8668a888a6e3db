"""The command `python -m pipeline.evaluate MODEL --shards U`: accuracy of a model on any shards.

`accuracy` counts correct guesses and `measure` makes one pass over a split, which gives a `report`. `classes` matches
the split's labels with the model's outputs. `log` adds the report to the model's MLflow run.
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.evaluate.measure import evaluate
    from pipeline.evaluate.report import Report
    from pipeline.tasks.classification.accuracy import Evaluation

__all__ = ["Evaluation", "Report", "evaluate"]

__getattr__ = lazy_attributes(
    __name__,
    {"Evaluation": "accuracy", "Report": "report", "evaluate": "measure"},
)
