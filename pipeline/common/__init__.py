"""Helpers for every folder: atomic files, helper processes, errors, secrets, commands, the console."""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.common.errors import TrainingError
    from pipeline.common.processes import PROJECT_ROOT
    from pipeline.common.secrets import mask_secrets

__all__ = ["PROJECT_ROOT", "TrainingError", "mask_secrets"]

__getattr__ = lazy_attributes(
    __name__,
    {"PROJECT_ROOT": "processes", "TrainingError": "errors", "mask_secrets": "secrets"},
)
