"""Compare each operator's kernels with plain PyTorch on this device, and time both."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transxnet.backend import leave_to_pytorch, left_to_pytorch
from transxnet.check.compilation import compile_ahead
from transxnet.check.operators import OPERATORS, Operator
from transxnet.check.run import OperatorRun
from transxnet.config import Backend

__all__ = ["Verdict", "prove"]

ALLOWED = 2.0
"""A kernel's largest error, as a multiple of PyTorch's own."""
REPEATS = 10
RUNS: tuple[tuple[Backend, bool], ...] = (("reference", True), ("reference", False), ("triton", False))
"""Backend, and whether in fp64: what is compared."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the comparison of an operator found.

    Attributes:
        operator: its name.
        error: the kernels' largest error among output, gradients and statistics, relative to their norms; None if they
            raised.
        pytorch_error: that of plain PyTorch in the same precision.
        kernel_ms: time of forward and backward on the kernels, in ms; None where it is not timed.
        pytorch_ms: time in plain PyTorch, in ms.
        problem: why the operator is left to PyTorch; empty if the kernels are trusted.
    """

    operator: str
    error: float | None
    pytorch_error: float
    kernel_ms: float | None
    pytorch_ms: float | None
    problem: str

    def line(self) -> str:
        """Return the verdict as a line of the table."""
        error = "raised" if self.error is None else f"{self.error:.1e}"
        times = "" if self.kernel_ms is None else f"{self.kernel_ms:.2f} ms, PyTorch's {self.pytorch_ms:.2f} ms"
        verdict = f"left to PyTorch: {self.problem}" if self.problem else "trusted"
        return f"{self.operator:20s} error {error:8s} PyTorch's {self.pytorch_error:.1e}  {times:32s}  {verdict}"


def prove(
    device: torch.device,
    dtype: torch.dtype,
    operators: Sequence[Operator] = OPERATORS,
    *,
    timed: bool | None = None,
    report: Callable[[Verdict], None] | None = None,
) -> list[Verdict]:
    """Compare and time the operators, and leave to PyTorch those whose kernels fail, raise or are slower.

    Forward and backward run on small awkward shapes, in `dtype` as under autocast, against plain PyTorch in fp64. The
    error is at most twice PyTorch's own, or the rounding error of `dtype`. The state of random generators is kept.

    Args:
        device: a device on which the kernels run.
        dtype: the precision of the run, fp32, bf16 or fp16.
        operators: those to compare; all others are trusted as they were.
        timed: whether to time them; by default on a GPU, and not in triton's interpreter.
        report: called with each verdict when it is found.

    Returns:
        A verdict for each operator.
    """
    timed = device.type == "cuda" if timed is None else timed
    names = {operator.name for operator in operators}
    failed = set(left_to_pytorch() - names)
    verdicts = []
    generators = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with generators, torch.inference_mode(False), torch.enable_grad():
        if device.type == "cuda":
            leave_to_pytorch(failed)
            compile_ahead(operators, device, dtype, timed=timed)
        for operator in operators:
            # An operator is compared with those before it in the state in which they will run.
            leave_to_pytorch(failed)
            verdict = _verdict(operator, device, dtype, timed=timed)
            failed |= {operator.name} if verdict.problem else set()
            verdicts.append(verdict)
            if report is not None:
                report(verdict)
    leave_to_pytorch(failed)
    return verdicts


def _verdict(operator: Operator, device: torch.device, dtype: torch.dtype, *, timed: bool) -> Verdict:
    error = kernel_ms = pytorch_ms = None
    pytorch_error, problem = 0.0, ""
    try:
        exact, plain, kernels = (
            OperatorRun(operator, operator.awkward, backend, device, dtype, exact=exact) for backend, exact in RUNS
        )
        wanted = exact.results()
        pytorch_error = _largest_error(plain.results(), wanted)
        error = _largest_error(kernels.results(), wanted)
        rounding = torch.finfo(dtype).eps * (4.0 if dtype == torch.float32 else 0.5)
        allowed = max(ALLOWED * pytorch_error, rounding)
        if not error <= allowed:
            problem = f"its error is {error:.1e}, {allowed:.1e} is allowed"
        elif timed:
            pair = [
                OperatorRun(operator, operator.typical, backend, device, dtype, exact=False) for backend, _ in RUNS[1:]
            ]
            pytorch_ms, kernel_ms = _alternate([run.step for run in pair], device)
            if kernel_ms > pytorch_ms:
                problem = f"it takes {kernel_ms:.2f} ms, PyTorch {pytorch_ms:.2f} ms"
    except Exception as failure:
        problem = f"it raised {type(failure).__name__}: {str(failure).strip().splitlines()[0] if str(failure) else ''}"
    return Verdict(
        operator=operator.name,
        error=error,
        pytorch_error=pytorch_error,
        kernel_ms=kernel_ms,
        pytorch_ms=pytorch_ms,
        problem=problem,
    )


def _largest_error(actual: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Return the largest relative error; NaN if a value is not finite or missing."""
    errors = []
    for name, exact in wanted.items():
        if name not in actual or not actual[name].isfinite().all():
            return float("nan")
        scale = exact.norm() + 1e-3 * exact.numel() ** 0.5
        errors.append(((actual[name] - exact).norm() / scale).item())
    return max(errors)


def _alternate(steps: Sequence[Callable[[], object]], device: torch.device) -> list[float]:
    """Return the median milliseconds of each step; the steps take turns, after two runs to warm up."""
    times: list[list[float]] = [[] for _ in steps]
    for repeat in range(REPEATS + 2):
        for step, found in zip(steps, times, strict=True):
            _wait(device)
            start = time.perf_counter()
            step()
            _wait(device)
            if repeat >= 2:
                found.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(found) for found in times]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
