"""What the commands share: errors in one line, exit statuses, and a `--help` that is short."""

import dataclasses
import importlib
import inspect
import io
import os
import sys
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def run_main(main: Callable[..., int], prog: str) -> int:
    """Call `main` with the flags and arguments of the command line; return the exit status.

    Args:
        main: function whose parameters are the flags and whose docstring is the text of `--help`.
        prog: command as the user types it, for `--help`.
    """
    types_by_name = get_type_hints(main)
    for name, parameter in inspect.signature(main).parameters.items():
        shown: list[Any] = []
        metavar = None
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            metavar = name.upper() if parameter.default is parameter.empty else f"[{name.upper()}]"
        elif parameter.default is None:
            [option] = (option for option in get_args(types_by_name[name]) if option is not types.NoneType)
            shown = [_choices(get_args(option))] if get_origin(option) is Literal else []
            metavar = None if shown else option.__name__.upper()
        elif parameter.default is not False:
            continue
        argument = tyro.conf.arg(metavar=metavar, help_behavior_hint="")
        main.__annotations__[name] = Annotated[types_by_name[name], argument, *shown]
    return exit_status(lambda: tyro.cli(main, prog=prog, config=(tyro.conf.FlagCreatePairsOff,)))


def _choices(names: tuple[str, ...]) -> PrimitiveConstructorSpec[str | None]:
    """Return how a flag is read that takes one of these names, and is `None` where it is not given."""
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(names)}}}",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: value is None or value in names,
        str_from_instance=lambda value: [str(value)],
        choices=names,
    )


def load_main(module: str) -> Callable[..., int]:
    """Import the module of a command and return its `main`; exit with one line if other packages hide the project's."""
    from pipeline.common.errors import InputError
    from pipeline.common.packages import check_packages

    try:
        check_packages()
    except InputError as error:
        print_error(str(error))
        sys.exit(2)
    return importlib.import_module(module).main


def exit_status(command: Callable[[], int], on_error: int = 1) -> int:
    """Run a command; return its exit status, without a traceback for an error that is the user's to mend.

    Args:
        command: returns the exit status of a command that ran to its end.
        on_error: exit status after such an error, which is one line on stderr.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal whose encoding lacks a letter shows its code, as on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return report_errors(command, on_error)
    except BrokenPipeError:
        # The reader of the output has gone (`| head`). What is still buffered must not raise once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def report_errors(command: Callable[[], int], on_error: int = 1) -> int:
    """Run a command; print an error that is the user's to mend as one line on stderr and return `on_error`.

    Such an error is a `PipelineError`, a `JobError`, a `ShardingError` or an `OSError` other than a broken pipe.
    """
    try:
        return command()
    except BrokenPipeError:
        raise
    except Exception as error:
        # Imported only now: `--help` waits for none of these packages.
        from jobs import JobError
        from pipeline.common.errors import PipelineError
        from sharding import ShardingError

        if not isinstance(error, PipelineError | JobError | ShardingError | OSError):
            raise
        print_error(str(error))
        return on_error


def print_error(message: str) -> None:
    """Print `error: MESSAGE` on stderr, without secrets."""
    from pipeline.common.secrets import mask_secrets

    print(f"error: {mask_secrets(message)}", file=sys.stderr)


def help_registry() -> ConstructorRegistry:
    """Return the `registry` of `tyro.cli` that shortens `--help`: `STR` for `{None}|STR`, and no default twice.

    Values, `None` among them, are read as without it.
    """
    made = ConstructorRegistry()
    inside = False

    @made.struct_rule
    def with_short_help(info: StructTypeInfo) -> StructConstructorSpec | None:
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
    options = [option for option in get_args(field.type) if option not in (types.NoneType, ...)]
    is_list = get_origin(field.type) is tuple and field.default == ()
    is_optional = get_origin(field.type) in (Union, types.UnionType) and len(options) < len(get_args(field.type))
    if not is_list and not is_optional:
        return field

    def hint(default: str) -> str:
        """Leave out a default that the help text explains in words."""
        help_text = field.helptext() if callable(field.helptext) else field.helptext
        explained = not default or (default == "None" and "by default" in (help_text or ""))
        return "" if explained else f"(default: {default})"

    metavar = None if is_list else "|".join(map(_metavar, options))
    shown: Any = Annotated[field.type, tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)]
    return dataclasses.replace(field, type=shown)


def _metavar(kind: Any) -> str:
    """Return what stands for a value of a type: `INT`, or `{a,b}` for one of these."""
    return f"{{{','.join(map(str, get_args(kind)))}}}" if get_origin(kind) is Literal else kind.__name__.upper()
