"""The only way in which this package writes to the terminal: results to stdout, progress and errors to stderr.

Worker processes print nothing: what they find comes back to the build process as a value or an exception.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

Log = Callable[[str], None]
"""Takes one line of text for the user. The library functions get one as an argument; the commands pass `print_line`."""


def no_log(line: str) -> None:
    """Discard a line: the default where the package is used as a library."""


def print_line(line: str) -> None:
    """Print one line of the result to stdout at once."""
    print(line, flush=True)


def print_status(line: str) -> None:
    """Print one line about progress, or an error, to stderr at once."""
    print(line, file=sys.stderr, flush=True)
