"""Pure functions of the seed and the step: which rank reads which sample, and every random draw."""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.order.samples import SampleOrder, global_order, rank_positions

__all__ = ["SampleOrder", "global_order", "rank_positions"]

__getattr__ = lazy_attributes(
    __name__,
    {"SampleOrder": "samples", "global_order": "samples", "rank_positions": "samples"},
)
