"""What the commands of this package share: flags, errors in one line, exit codes."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Options = TypeVar("Options")


@dataclass(frozen=True, kw_only=True)
class ShardsOptions:
    """Which shards a command reads, and how."""

    shards: str = "shards"
    """folder or URI of the shards"""
    split: str | None = None
    """train, validation, …; by default all"""
    name: str | None = None
    """prefix of the shards; by default all"""
    decode_check: bool = True
    """decode each image to prove that it is whole"""
    workers: int | None = None
    """processes; by default one for each CPU this process may use"""


def run_command(
    program: str, kind: type[Options], action: Callable[[Options], int], *, places: Callable[[Options], str], ended: str
) -> int:
    """Read the flags, do it, and say in one line what stopped it.

    Args:
        program: as the user started it, for `--help`.
        kind: of the options; its docstring is what `--help` says first.
        action: gives the exit code.
        places: what it works on, for errors of the system.
        ended: what became of the work, where Ctrl-C ended it.

    Returns:
        The exit code: of the action, 1 after an error, 130 after Ctrl-C.
    """
    from sharding.errors import ShardingError

    options = None
    try:
        import tyro

        options = tyro.cli(kind, prog=program, description=inspect.getdoc(kind))
        return action(options)
    except ShardingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # Whoever read the output has gone; what is still buffered must not raise once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        place = program if options is None else places(options)
        print(f"error: {place} cannot be used: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted: {ended}", file=sys.stderr)
        return 130


def say_line(line: str) -> None:
    """Print a line for the user at once."""
    print(line, flush=True)
