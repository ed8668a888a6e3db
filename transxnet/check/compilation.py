"""Compile the kernels that a comparison launches, several at a time."""

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from transxnet.check.operators import Operator, Shape
from transxnet.check.run import OperatorRun

__all__ = ["compile_ahead"]

THREADS = 16
"""More would wait for each other: a part of the compiler holds Python's lock."""


def compile_ahead(
    operators: Sequence[Operator], device: torch.device, dtype: torch.dtype, *, timed: bool, threads: int | None = None
) -> None:
    """Run each operator once on its kernels, so that triton compiles and keeps them; failures are left for later.

    Compiling takes almost all of a comparison's time, and triton compiles a kernel in the thread that launches it.

    Args:
        operators: those to compile, best with the fewest kernels first: the last begins first, so that no core is idle
            at the end.
        device: a device on which the kernels run.
        dtype: the precision of the activations.
        timed: whether they will be timed, too, on their typical shapes.
        threads: how many run at a time; by default one for each core of this process, at most `THREADS`.
    """

    def run(operator: Operator, shape: Shape) -> None:
        on_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
        # The backward's kernels would all be compiled by the device's one autograd thread.
        with contextlib.suppress(Exception), on_device, torch.autograd.set_multithreading_enabled(False):
            OperatorRun(operator, shape, "triton", device, dtype, exact=False).step()

    with ThreadPoolExecutor(threads or min(THREADS, len(os.sched_getaffinity(0)))) as pool:
        for operator in reversed(operators):
            for shape in (operator.typical, operator.awkward) if timed else (operator.awkward,):
                pool.submit(run, operator, shape)
