"""Replaces the decoder by one that some images crash: imported by the fork server, it affects all workers.

Run it as a script, `python -m tests.sharding.crashing_decoder build --source …`, for a command with such workers.
"""

import os
import signal
import sys
from importlib import import_module

import sharding.images
import sharding.scan
import sharding.writer
from sharding.pool import prepare_workers

SIGNALS = {b"segmentation fault": signal.SIGSEGV, b"heap corruption": signal.SIGABRT, b"out of memory": signal.SIGKILL}


def crash(data: bytes, policy: sharding.images.ImagePolicy) -> sharding.images.PackedImage:
    """Pack an image, unless it ends with the name of a crash."""
    for end, number in SIGNALS.items():
        if data.endswith(end):
            os.kill(os.getpid(), number)
    return sharding.images.pack_image(data, policy)


if __name__ == "__main__":
    prepare_workers("tests.sharding.crashing_decoder")
    command, *sys.argv[1:] = sys.argv[1:]
    raise SystemExit(import_module(f"sharding.{command}").main())

sharding.writer.pack_image = sharding.scan.pack_image = crash
