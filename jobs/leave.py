"""How a process leaves: at once, since libraries such as torch can crash while the interpreter shuts down."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """Flush what was printed, and end this process without a teardown: neither `atexit` nor a destructor runs."""
    for stream in (sys.stdout, sys.stderr):
        # A full disk must not turn a finished rank into a failed one.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)


def run_and_leave(main: Callable[[], int | None]) -> NoReturn:
    """Call `main`, and leave with the status that it returns, with which it exits, or with 1 after an exception."""
    status: object = 1
    try:
        status = main()
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    leave(0 if status is None else status if isinstance(status, int) else 1)
