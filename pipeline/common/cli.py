"""How `--help` shows flags that may be left out: `STR` instead of `{None}|STR`, and no default that the words say."""

import dataclasses
import inspect
import os
import sys
import types
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo


def run_main(main: Callable[..., int], prog: str) -> int:
    """Call `main` with the arguments of the command line, as short in its `--help`; returns the exit status."""
    kinds = get_type_hints(main)
    for name, parameter in inspect.signature(main).parameters.items():
        metavar = None
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            metavar = name.upper() if parameter.default is parameter.empty else f"[{name.upper()}]"
        elif parameter.default is None:
            metavar = next(kind.__name__.upper() for kind in get_args(kinds[name]) if kind is not types.NoneType)
        elif parameter.default is not False:
            continue
        shown = tyro.conf.arg(metavar=metavar, help_behavior_hint="")
        main.__annotations__[name] = Annotated[kinds[name], shown]
    return ended_quietly(lambda: tyro.cli(main, prog=prog, config=(tyro.conf.FlagCreatePairsOff,)))


def ended_quietly(command: Callable[[], int]) -> int:
    """The exit status of a command, without a traceback where the person has seen enough (`| head`, Ctrl-C)."""
    try:
        return command()
    except BrokenPipeError:
        # What is still buffered must not raise once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def registry() -> ConstructorRegistry:
    """What `tyro.cli` takes as `registry`; values, `None` among them, are read as before."""
    made = ConstructorRegistry()
    inside = False

    @made.struct_rule
    def with_short_words(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal inside
        if inside or not dataclasses.is_dataclass(info.type):
            return None
        inside = True
        try:
            spec = ConstructorRegistry.get_struct_spec(info)
        finally:
            inside = False
        if not isinstance(spec, StructConstructorSpec):
            return None
        return dataclasses.replace(spec, fields=tuple(_shortened(field) for field in spec.fields))

    return made


def _shortened(field: StructFieldSpec) -> StructFieldSpec:
    kinds = [kind for kind in get_args(field.type) if kind not in (types.NoneType, ...)]
    many = get_origin(field.type) is tuple and field.default == ()
    if not many and (get_origin(field.type) is not types.UnionType or len(kinds) != 1):
        return field

    def hint(default: str) -> str:
        words = field.helptext() if callable(field.helptext) else field.helptext
        said = not default or (default == "None" and "by default" in (words or ""))
        return "" if said else f"(default: {default})"

    metavar = None if many else kinds[0].__name__.upper()
    kind: Any = Annotated[field.type, tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)]
    return dataclasses.replace(field, type=kind)
