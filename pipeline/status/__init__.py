"""The command `python -m pipeline.status [RUN_DIR]`: how runs stand, from their own files."""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.status.sync import sync_run

__all__ = ["sync_run"]

__getattr__ = lazy_attributes(
    __name__,
    {"sync_run": "sync"},
)
