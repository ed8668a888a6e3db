"""IDConv."""

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
from transxnet.kernels.idconv.dynamic_conv import dynamic_conv, dynamic_conv_reference


@pytest.mark.parametrize(
    ("shape", "squeezed", "groups", "dtype", "training"),
    [
        ((4, 5, 13, 9), 2, 3, FP32, True),
        ((1, 19, 14, 7), 4, 2, LOW, False),
        pytest.param((2, 19, 14, 7), 4, 2, LOW, False, marks=slow_on_cpu),
        pytest.param((4, 19, 7, 7), 4, 2, LOW, True, marks=slow_on_cpu),
        pytest.param((2, 3, 40, 33), 2, 2, FP32, True, marks=slow_on_cpu),
        pytest.param((3, 76, 13, 9), 19, 3, LOW, True, marks=slow_on_cpu),
        pytest.param((2, 336, 7, 7), 84, 4, FP32, True, marks=slow_on_cpu),
        pytest.param((300, 4, 3, 2), 1, 2, FP32, True, marks=slow_on_cpu),
    ],
)
def test_dynamic_conv_matches_the_reference(shape, squeezed, groups, dtype, training):
    torch.manual_seed(0)
    c = shape[1]
    inputs = {
        "x": (torch.randn(shape) + torch.randn(*shape[:2], 1, 1)).to(dtype),
        "squeeze": torch.randn(squeezed, c, 1, 1) / c**0.5,
        "weight": 1 + 0.1 * torch.randn(squeezed),
        "shift": torch.randn(squeezed),
        "expand": torch.randn(groups * c, squeezed, 1, 1),
        "offset": torch.randn(groups * c),
        "taps": torch.randn(groups, c, 7, 7) / 7,
        "bias": torch.randn(groups, c),
    }
    norms = {}

    def call(operator):
        def run(t):
            norm = with_parameters(batch_norm(squeezed, training, t["x"].dtype), t["weight"], t["shift"])
            norms[operator] = [norm]
            given = t if operator is dynamic_conv else {name: value.to(t["x"].dtype) for name, value in t.items()}
            names = ("expand", "offset", "taps", "bias")
            return operator(given["x"], given["squeeze"], norm, *(given[name] for name in names))

        return run

    assert_as_exact_as_pytorch(call(dynamic_conv), call(dynamic_conv_reference), inputs, shape)
    assert_same_buffers(norms[dynamic_conv], norms[dynamic_conv_reference], 1e-4 if dtype == FP32 else 2e-2)
