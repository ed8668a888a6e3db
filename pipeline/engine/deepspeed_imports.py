"""Imports that a rank leaves out, since it neither tunes nor usually compiles: two thirds of its start-up.

DeepSpeed's autotuner imports MLflow. DeepSpeed's check of the optimizer imports Muon, which compiles at import. Every
torch optimizer imports `torch._dynamo`, only to mark functions that it must not compile. Each takes seconds.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_DYNAMO = "torch._dynamo"


def import_deepspeed() -> ModuleType:
    """Import DeepSpeed without MLflow, which is optional there, and without compiling Muon, which is not used here."""
    if "mlflow" in sys.modules:
        import deepspeed
    else:
        sys.modules["mlflow"] = None  # pyright: ignore[reportArgumentType]
        try:
            import deepspeed
        finally:
            del sys.modules["mlflow"]

    import torch

    compiles = torch.compile
    torch.compile = lambda *_, **__: lambda function: function  # pyright: ignore[reportAttributeAccessIssue]
    try:
        import deepspeed.runtime.zero.muon.original_muon
    finally:
        torch.compile = compiles
    return deepspeed


class _Deferred(ModuleType):
    """Takes the place of `torch._dynamo` while nothing is compiled; any other use of it imports the real module."""

    @staticmethod
    def disable(function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
        """The function itself: there is no compiler to disable."""
        return function

    @staticmethod
    def graph_break() -> None:
        """Do nothing: nothing is traced."""

    def __getattr__(self, name: str) -> Any:
        if name == "__file__":  # tools that walk sys.modules read it; they need no compiler
            raise AttributeError(name)
        end_deferral()
        return getattr(importlib.import_module(_DYNAMO), name)


def defer_compiler() -> None:
    """Delay the import of `torch._dynamo` until something needs the compiler."""
    if _DYNAMO not in sys.modules:
        sys.modules[_DYNAMO] = _Deferred(_DYNAMO)


def end_deferral() -> None:
    """Let `import torch._dynamo` import the real module again."""
    if isinstance(sys.modules.get(_DYNAMO), _Deferred):
        del sys.modules[_DYNAMO]
