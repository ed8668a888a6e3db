"""The command `python -m pipeline.register RUN_DIR`: a verified model version in the MLflow registry.

`registration` is the way from a run to a version: the best weights (`best`), the model's files (`mlflow_model`), the
proof in a clean process (`verify`), the aliases (`champion`).
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.register.registration import RegisteredVersion, register, register_or_say_how

__all__ = ["RegisteredVersion", "register", "register_or_say_how"]

__getattr__ = lazy_attributes(
    __name__,
    {"RegisteredVersion": "registration", "register": "registration", "register_or_say_how": "registration"},
)
