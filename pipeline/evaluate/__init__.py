"""The command `python -m pipeline.evaluate MODEL --shards U`: accuracy of a model on any shards."""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.evaluate.accuracy import Evaluation
    from pipeline.evaluate.measure import Report, evaluate

__all__ = ["Evaluation", "Report", "evaluate"]

__getattr__ = lazy_attributes(
    __name__,
    {"Evaluation": "accuracy", "Report": "measure", "evaluate": "measure"},
)
