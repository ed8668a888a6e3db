"""Compare outputs and gradients of a kernel's operator with those of its reference.

Importing this module skips a test module where the kernels cannot run: they need a CUDA device or triton's interpreter.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("triton", reason="triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs on a GPU, or through the interpreter by test_interpreter.py", allow_module_level=True)

EPS = torch.finfo(torch.float32).eps
FP32, BF16 = torch.float32, torch.bfloat16
LOW = torch.bfloat16 if DEVICE == "cuda" else torch.float16
"""Activations in 16 bits. Triton's interpreter multiplies bf16 matrices as if their bits were integers."""
slow_on_cpu = pytest.mark.slow if DEVICE == "cpu" else pytest.mark.gpu
"""Marks a case that takes long in the interpreter."""

Operator = Callable[[Mapping[str, Tensor]], Tensor]


@contextlib.contextmanager
def poisoned_empty() -> Iterator[None]:
    """Fill the results of `torch.empty` and `torch.empty_like` with NaN, which shows values that no kernel wrote."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def make_poisoned(*args, **kwargs) -> Tensor:
            out = make(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        return make_poisoned

    torch.empty, torch.empty_like = poison(empty), poison(empty_like)
    try:
        yield
    finally:
        torch.empty, torch.empty_like = empty, empty_like


def run(operator: Operator, inputs: Mapping[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    """Return the output, and the gradient of each input that takes one, by name; the inputs are copied."""
    leaves = {
        name: value.detach().clone().requires_grad_() if value.is_floating_point() else value
        for name, value in inputs.items()
    }
    out = operator(leaves)
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    gradients = torch.autograd.grad(out, list(wanted.values()), grad.to(out.dtype), allow_unused=True)
    results = {"output": out.detach()}
    for name, gradient in zip(wanted, gradients, strict=True):
        if gradient is not None:
            results[f"d {name}"] = gradient
    return results


def assert_as_exact_as_pytorch(
    kernel: Operator, reference: Operator, inputs: Mapping[str, Tensor], shape: Sequence[int]
) -> None:
    """Assert that the error of `kernel` is at most twice that of `reference` in the inputs' own dtype.

    Errors are taken against the reference in fp64. PyTorch's error is the largest among the output and all gradients,
    because the error of a sum that cancels is a matter of chance in either form. The kernel runs on poisoned memory. On
    a GPU it runs twice and must give the same bits; the interpreter runs the programs one after the other in any case.
    """
    torch.manual_seed(1)
    grad = torch.randn(shape, dtype=torch.float64)
    low = {name: value.to(DEVICE) for name, value in inputs.items()}
    exact_inputs = {name: value.double() if value.is_floating_point() else value for name, value in low.items()}
    activation = next(iter(low.values())).dtype
    exact = run(reference, exact_inputs, grad.to(DEVICE).to(activation).double())
    plain = run(reference, low, grad.to(DEVICE).to(activation))
    with poisoned_empty():
        actual = run(kernel, low, grad.to(DEVICE).to(activation))
        again = run(kernel, low, grad.to(DEVICE).to(activation)) if DEVICE == "cuda" else actual
    assert actual.keys() == exact.keys()
    scales = {name: wanted.norm() + 1e-3 * wanted.numel() ** 0.5 for name, wanted in exact.items()}
    allowed = 2 * max((plain[name].double() - wanted).norm() / scales[name] for name, wanted in exact.items())
    for name, wanted in exact.items():
        assert actual[name].shape == wanted.shape, name
        assert actual[name].isfinite().all(), f"{name} has values that were never written"
        assert torch.equal(actual[name], again[name]), f"{name} differs between two runs"
        error = (actual[name].double() - wanted).norm() / scales[name]
        # Where a GPU rounds to bf16, triton's interpreter truncates: twice the error of one rounding.
        floor = 4 * EPS if activation == torch.float32 else torch.finfo(activation).eps / 2
        assert error <= max(allowed, floor), f"{name}: {error:.2e}, PyTorch's error is {allowed / 2:.2e}"


def batch_norm(channels: int, training: bool, dtype: torch.dtype) -> nn.BatchNorm2d:
    """Return a norm with statistics other than the initial ones, in fp64 for the exact run and in fp32 otherwise."""
    torch.manual_seed(2)
    norm = nn.BatchNorm2d(channels)
    norm.running_mean = torch.randn(channels)
    norm.running_var = torch.rand(channels) + 0.5
    norm = norm.to(DEVICE, torch.float64 if dtype == torch.float64 else FP32)
    return norm.train(training)


def with_parameters(norm: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    """Return `norm` with the given leaves as its parameters, so that their gradients can be compared."""
    del norm.weight, norm.bias
    norm.weight, norm.bias = weight, bias
    return norm


def assert_same_buffers(kernel_norms: Sequence[nn.Module], reference_norms: Sequence[nn.Module], rtol: float) -> None:
    """Assert that the running statistics of the kernel's norms equal those of the reference's."""
    for norm, reference in zip(kernel_norms, reference_norms, strict=True):
        for (name, value), (_, wanted) in zip(norm.named_buffers(), reference.named_buffers(), strict=True):
            assert torch.allclose(value.double(), wanted.double(), rtol=rtol, atol=1e-4), name
