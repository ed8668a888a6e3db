"""What a rank need not import: two thirds of its start-up, since it neither tunes nor, as a rule, compiles.

DeepSpeed's autotuner imports MLflow, its check of the optimizer imports Muon, which compiles at import, and every
torch optimizer imports the compiler's front end to tell it to keep away. All three are several seconds of a restart.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

_DYNAMO = "torch._dynamo"


def import_deepspeed() -> ModuleType:
    """DeepSpeed, whose optional MLflow is absent and whose Muon, which is not used here, stays uncompiled."""
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
    """Stands for `torch._dynamo` where nothing is compiled; any other use of it loads the real one."""

    @staticmethod
    def disable(function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
        """The function itself: no compiler is there that it should be kept from."""
        return function

    @staticmethod
    def graph_break() -> None:
        """Nothing is traced, so nothing breaks."""

    def __getattr__(self, name: str) -> Any:
        if name == "__file__":  # who goes through all modules asks for it, and wants no compiler
            raise AttributeError(name)
        end_deferral()
        return getattr(importlib.import_module(_DYNAMO), name)


def defer_compiler() -> None:
    """Import torch's compiler only when something asks for more of it than to be left alone."""
    if _DYNAMO not in sys.modules:
        sys.modules[_DYNAMO] = _Deferred(_DYNAMO)


def end_deferral() -> None:
    """Let `import torch._dynamo` mean the real one again."""
    if isinstance(sys.modules.get(_DYNAMO), _Deferred):
        del sys.modules[_DYNAMO]
