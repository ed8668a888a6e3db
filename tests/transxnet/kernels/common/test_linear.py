"""GELU, BatchNorm and a 1x1 convolution."""

import pytest
import torch

from tests.transxnet.kernels.compare import (
    FP32,
    LOW,
    assert_as_exact_as_pytorch,
    assert_same_buffers,
    batch_norm,
    slow_on_cpu,
    with_parameters,
)
from transxnet.kernels.common.linear import gelu_norm_linear, gelu_norm_linear_reference


@pytest.mark.parametrize(
    ("shape", "outputs", "dtype", "training"),
    [
        ((1, 19, 13, 9), 35, FP32, True),
        ((3, 70, 7, 7), 6, LOW, False),
        pytest.param((2, 336, 7, 7), 42, LOW, True, marks=slow_on_cpu),
        pytest.param((5, 76, 13, 9), 300, FP32, True, marks=slow_on_cpu),
        pytest.param((600, 2, 3, 5), 3, FP32, True, marks=slow_on_cpu),
        pytest.param((2, 19, 13, 21), 35, LOW, True, marks=slow_on_cpu, id="13x21"),
        pytest.param((1, 19, 25, 42), 35, FP32, True, marks=slow_on_cpu, id="25x42"),
        pytest.param((1, 19, 64, 64), 35, LOW, True, marks=slow_on_cpu, id="64x64"),
    ],
)
def test_gelu_norm_linear_matches_the_reference(shape, outputs, dtype, training):
    torch.manual_seed(0)
    c = shape[1]
    inputs = {
        "x": (torch.randn(shape) + torch.linspace(-3, 3, c).view(-1, 1, 1)).to(dtype),
        "weight": 1 + 0.1 * torch.randn(c),
        "bias": 0.1 * torch.randn(c),
        "matrix": torch.randn(outputs, c, 1, 1) / c**0.5,
        "offset": torch.randn(outputs),
    }
    norms = {}

    def call(operator):
        def run(t):
            norm = with_parameters(batch_norm(c, training, t["x"].dtype), t["weight"], t["bias"])
            norms[operator] = [norm]
            if operator is gelu_norm_linear:
                return operator(t["x"], norm, t["matrix"], t["offset"])[0]
            return operator(t["x"], norm, t["matrix"].to(t["x"].dtype), t["offset"].to(t["x"].dtype))

        return run

    assert_as_exact_as_pytorch(
        call(gelu_norm_linear), call(gelu_norm_linear_reference), inputs, (shape[0], outputs, *shape[2:])
    )
    assert_same_buffers(norms[gelu_norm_linear], norms[gelu_norm_linear_reference], 1e-4 if dtype == FP32 else 1e-2)
