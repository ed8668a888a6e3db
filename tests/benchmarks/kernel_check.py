"""Time the compilation of every kernel that `transxnet.check` launches, for a GPU that need not be present.

    python -m tests.benchmarks.kernel_check [--capability 90] [--threads 1 2]

Compiling takes almost all of a node's first check. The check's own `compile_ahead` runs its operators on both of their
shapes, forward and backward on the CPU. Each kernel is compiled as on a GPU where it would be launched, once, into an
empty cache; it is not run. So the time has all but the check's runs on the GPU.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from tests.transxnet.kernels.aot import Launch
from transxnet import backend as backends
from transxnet.check.compilation import compile_ahead
from transxnet.check.operators import OPERATORS


@contextmanager
def compiled_instead_of_run(capability: int) -> Iterator[set[Hashable]]:
    """Compile each kernel in the thread that launches it first; yield the set that each is added to."""
    from triton.runtime.jit import JITFunction

    compiled: set[Hashable] = set()
    lock = threading.Lock()

    def run(self: Any, *args: Any, **kwargs: Any) -> SimpleNamespace:
        launch = Launch(self, {**dict(zip(self.arg_names, args, strict=False)), **kwargs})
        with lock:
            is_new = launch.specialisation() not in compiled
            compiled.add(launch.specialisation())
        if is_new:
            launch.compile(capability)
        return SimpleNamespace()

    with mock.patch.object(JITFunction, "run", run), mock.patch.object(backends, "_interprets", return_value=True):
        yield compiled


def measure(capability: int, threads: int) -> None:
    """Compile with `threads` threads, and print."""
    with tempfile.TemporaryDirectory() as folder, compiled_instead_of_run(capability) as compiled:
        os.environ["TRITON_CACHE_DIR"] = folder
        clock, before = time.perf_counter(), os.times()
        compile_ahead(OPERATORS, torch.device("cpu"), torch.bfloat16, timed=True, threads=threads)
        seconds, after = time.perf_counter() - clock, os.times()
    # The assembler is a process of its own.
    cpu = sum(after[:4]) - sum(before[:4])
    print(
        f"{len(compiled)} kernels for sm_{capability}, {threads} threads: {seconds:.0f} s by the clock, "
        f"{cpu:.0f} s of CPU time",
        flush=True,
    )


def main() -> None:
    """Measure each number of threads in a process of its own, which has compiled nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    if len(options.threads) == 1:
        measure(options.capability, options.threads[0])
        return
    for threads in options.threads:
        command = ["-m", "tests.benchmarks.kernel_check", "--capability", options.capability, "--threads", threads]
        subprocess.run([sys.executable, *map(str, command)], check=True)


if __name__ == "__main__":
    main()
