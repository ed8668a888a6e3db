"""Outputs and gradients of a kernel's operator against its plain form."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

EPS = torch.finfo(torch.float32).eps

Operator = Callable[[Mapping[str, Tensor]], Tensor]


@contextlib.contextmanager
def poisoned_empty() -> Iterator[None]:
    """Let `torch.empty` and `torch.empty_like` hand out NaN, so that what a kernel does not write shows."""
    empty, empty_like = torch.empty, torch.empty_like

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args, **kwargs) -> Tensor:
            out = make(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        return made

    torch.empty, torch.empty_like = poison(empty), poison(empty_like)
    try:
        yield
    finally:
        torch.empty, torch.empty_like = empty, empty_like


def run(operator: Operator, inputs: Mapping[str, Tensor], grad: Tensor) -> dict[str, Tensor]:
    """The output and the gradient of each input that takes one, by name, on fresh leaves."""
    leaves = {
        name: value.detach().clone().requires_grad_() if value.is_floating_point() else value
        for name, value in inputs.items()
    }
    out = operator(leaves)
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    gradients = torch.autograd.grad(out, list(wanted.values()), grad.to(out.dtype), allow_unused=True)
    found = {"output": out.detach()}
    for name, gradient in zip(wanted, gradients, strict=True):
        if gradient is not None:
            found[f"d {name}"] = gradient
    return found


def assert_as_exact_as_pytorch(kernel: Operator, reference: Operator, inputs: Mapping[str, Tensor], shape) -> None:
    """Error of `kernel` against the reference in fp64 at most twice that of the reference in the inputs' own dtype.

    PyTorch's error is the largest of the output and all gradients: a sum that cancels is off by luck in either form.
    The kernel runs twice, on poisoned memory, and gives the same bits both times.
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
        again = run(kernel, low, grad.to(DEVICE).to(activation))
    assert actual.keys() == exact.keys()
    scales = {name: wanted.norm() + 1e-3 * wanted.numel() ** 0.5 for name, wanted in exact.items()}
    allowed = 2 * max((plain[name].double() - wanted).norm() / scales[name] for name, wanted in exact.items())
    for name, wanted in exact.items():
        assert actual[name].shape == wanted.shape, name
        assert torch.equal(actual[name], again[name]), f"{name} differs between two runs"
        assert actual[name].isfinite().all(), f"{name} has values never written"
        error = (actual[name].double() - wanted).norm() / scales[name]
        # Where a GPU rounds to bf16, triton's interpreter cuts off: twice the error of one rounding.
        floor = 4 * EPS if activation == torch.float32 else torch.finfo(activation).eps / 2
        assert error <= max(allowed, floor), f"{name}: {error:.2e}, PyTorch makes {allowed / 2:.2e}"
