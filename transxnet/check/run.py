"""Run an operator's network on one backend, forward and backward."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from transxnet.check.operators import Operator, Shape
from transxnet.config import Backend

__all__ = ["OperatorRun"]


class OperatorRun:
    """An operator's network on one backend, with inputs and weights that depend on the shape alone."""

    def __init__(
        self,
        operator: Operator,
        shape: Shape,
        backend: Backend,
        device: torch.device,
        dtype: torch.dtype,
        *,
        exact: bool,
    ) -> None:
        torch.manual_seed(0)
        self.network = operator.build(shape, backend)
        _fill(self.network)
        x = torch.randn(shape.batch, shape.channels, shape.height, shape.width) + 0.5
        x = x.to(device, dtype)
        wide = torch.float64 if exact else torch.float32
        self.x = x.to(wide if exact else dtype).requires_grad_()
        self.network = self.network.to(device, wide).train()
        self.dtype, self.device = dtype, device
        self.autocasts = not exact and dtype != torch.float32

    def step(self) -> Tensor:
        """Run forward and backward; return the output."""
        with self._autocast():
            out = self.network(self.x)
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        out.backward(grad.to(self.dtype).to(out.device, out.dtype))
        return out.detach()

    def results(self) -> dict[str, Tensor]:
        """Return output, gradients and statistics by name, of one step on memory filled with NaN."""
        with _poisoned_memory():
            out = self.step()
        results = {"output": out, "d x": self.x.grad}
        results |= {f"d {name}": parameter.grad for name, parameter in self.network.named_parameters()}
        results |= {name: buffer for name, buffer in self.network.named_buffers() if buffer.is_floating_point()}
        return {name: value.double() for name, value in results.items() if value is not None}

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        # The caller may have autocast on.
        if self.autocasts:
            return torch.autocast(self.device.type, dtype=self.dtype)
        return torch.autocast(self.device.type, enabled=False)


def _fill(network: nn.Module) -> None:
    """Draw every parameter, so that each affects the output."""
    for name, parameter in network.named_parameters():
        fan = parameter[0].numel() if parameter.dim() > 1 else 1
        nn.init.normal_(parameter, std=1.0 if name.endswith("table") else 0.5 * fan**-0.5)
        if parameter.dim() == 1 and name.endswith("weight"):
            with torch.no_grad():
                parameter.add_(1.0)


@contextlib.contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Let `torch.empty` and `torch.empty_like` return NaN, which shows values that no kernel wrote."""
    settings: Any = torch.utils.deterministic
    enabled, fills = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        # cuBLAS would warn that its workspace is not set; here only the filling matters.
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warns)
        settings.fill_uninitialized_memory = fills
