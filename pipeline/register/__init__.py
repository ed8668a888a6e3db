"""The command `python -m pipeline.register RUN_DIR`: a verified model version in the MLflow registry.

`registration` leads from a run to a version: find the best weights (`best`), log the model's files (`mlflow_model`),
verify the model in a clean process (`verify`), create the version and set its aliases (`champion`).
"""

from typing import TYPE_CHECKING

from pipeline.common.lazy import lazy_attributes

if TYPE_CHECKING:
    from pipeline.register.registration import RegisteredVersion, register, register_or_explain

__all__ = ["RegisteredVersion", "register", "register_or_explain"]

__getattr__ = lazy_attributes(
    __name__,
    {"RegisteredVersion": "registration", "register": "registration", "register_or_explain": "registration"},
)
