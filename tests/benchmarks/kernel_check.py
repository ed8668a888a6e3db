"""Time the compilation of every kernel that `transxnet.check` launches, for a GPU that need not be present.

    python -m tests.benchmarks.kernel_check [--capability 90]

Compiling takes most of the time of a node's first check. The launches are recorded while the check's operators run
forward and backward in bf16 on both of their shapes; each is compiled once, into an empty cache.
"""

import argparse
import os
import tempfile
import time

import torch

from tests.benchmarks.traffic import Traffic, kernels_counted
from tests.transxnet.kernels.aot import Launch
from transxnet.check.operators import OPERATORS
from transxnet.check.proof import OperatorRun


def launches() -> list[Launch]:
    """Return the distinct launches of the check."""
    traffic = Traffic()
    with kernels_counted(traffic):
        for operator in OPERATORS:
            for shape in (operator.awkward, operator.typical):
                OperatorRun(operator, shape, "triton", torch.device("cpu"), torch.bfloat16, exact=False).step()
    found = [Launch(*launch) for launch in traffic.kernels]
    return list({launch.specialisation(): launch for launch in found}.values())


def main() -> None:
    """Compile and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--capability", type=int, default=90)
    options = parser.parse_args()
    found = launches()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        clock, before = time.perf_counter(), os.times()
        for launch in found:
            launch.compile(options.capability)
        after = os.times()
    # The assembler is a process of its own.
    cpu = sum(after[:4]) - sum(before[:4])
    print(
        f"{len(found)} kernels for sm_{options.capability}: {cpu:.0f} s of CPU time, "
        f"{time.perf_counter() - clock:.0f} s by the clock"
    )


if __name__ == "__main__":
    main()
