"""The command-line parts that build, verify and index share: common flags, one-line errors, exit codes."""

from __future__ import annotations

import inspect
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from sharding.console import print_status
from sharding.errors import ShardingError

if TYPE_CHECKING:
    from sharding.manifest import OddImage

Options = TypeVar("Options")


@dataclass(frozen=True, kw_only=True)
class ShardsOptions:
    """The flags of a command that reads shards."""

    shards: str = "shards"
    """folder or URI of the shards"""
    split: str | None = None
    """train, validation, …; by default all"""
    name: str | None = None
    """prefix of the shards; by default all"""
    decode_check: bool = True
    """decode each image to prove that it is whole"""
    workers: int | None = None
    """number of worker processes; by default one for each CPU this process may use"""


def count_odd(odd: Iterable[OddImage]) -> Iterator[str]:
    """Format one line for each kind of unusual image of a manifest, with the number of these images."""
    counts = Counter((entry.action, entry.reason) for entry in odd)
    for (action, reason), count in sorted(counts.items()):
        yield f"  {action}: {count} ({reason})"


def run_command(
    program: str,
    options_class: type[Options],
    action: Callable[[Options], int],
    *,
    describe_place: Callable[[Options], str],
    after_interrupt: str,
) -> int:
    """Parse the flags, run the action, and report whatever stopped it as one line on stderr.

    Args:
        program: command as the user typed it, shown by `--help`.
        options_class: dataclass of the flags; its docstring is the first paragraph of `--help`.
        action: function that does the work and returns the exit code.
        describe_place: function that names what the command works on, for the message of an `OSError`.
        after_interrupt: state of the work after Ctrl-C, for the message.

    Returns:
        The exit code: that of the action, 1 after an error, 130 after Ctrl-C.
    """
    options = None
    try:
        import tyro

        # A flag that is left out is None; help shows STR for it, not {None}|STR.
        description, config = inspect.getdoc(options_class), (tyro.conf.DisallowNone,)
        options = tyro.cli(options_class, prog=program, description=description, config=config)
        return action(options)
    except ShardingError as error:
        print_status(f"error: {error}")
        return 1
    except BrokenPipeError:
        # The reader of stdout is gone; flushing the buffer at exit must not raise once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        place = program if options is None else describe_place(options)
        print_status(f"error: {place} cannot be used: {error}")
        return 1
    except KeyboardInterrupt:
        print_status(f"interrupted: {after_interrupt}")
        return 130
