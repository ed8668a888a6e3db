"""OSRA's spatial reduction."""

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
from transxnet.kernels.osra.spatial_reduction import fork_spatial_reduction, fork_spatial_reduction_reference


@pytest.mark.parametrize(
    ("shape", "stride", "kernel", "dtype", "training"),
    [
        ((3, 3, 13, 9), 2, 5, FP32, True),
        ((2, 2, 9, 12), 4, 7, LOW, False),
        pytest.param((2, 19, 16, 17), 8, 11, LOW, True, marks=slow_on_cpu),
        pytest.param((1, 2, 40, 33), 2, 5, FP32, True, marks=slow_on_cpu),
        pytest.param((9, 76, 7, 7), 2, 5, FP32, True, marks=slow_on_cpu),
        pytest.param((2, 5, 13, 9), 3, 6, FP32, True, marks=slow_on_cpu),
    ],
)
def test_fork_spatial_reduction_matches_the_reference(shape, stride, kernel, dtype, training):
    torch.manual_seed(0)
    c = shape[1]
    inputs = {
        "x": (torch.randn(shape) + torch.linspace(-2, 2, c).view(-1, 1, 1)).to(dtype),
        "taps": torch.randn(c, 1, kernel, kernel) / kernel,
        "weight1": 1 + 0.1 * torch.randn(c),
        "bias1": torch.randn(c),
        "scale": torch.randn(c, 1, 1, 1),
        "weight2": 1 + 0.1 * torch.randn(c),
        "bias2": torch.randn(c),
        "local_taps": torch.randn(c, 1, 3, 3) / 3,
        "offset": torch.randn(c),
    }
    norms = {}

    def call(operator):
        def run(t):
            x_dtype = t["x"].dtype
            norm_pair = [batch_norm(c, training, x_dtype) for _ in range(2)]
            # With a small eps the norm would cancel the scale, whose gradient would be 0 up to rounding.
            norm_pair[1].eps = 10.0
            norms[operator] = norm_pair
            for index, norm in enumerate(norm_pair, start=1):
                with_parameters(norm, t[f"weight{index}"], t[f"bias{index}"])
            if operator is fork_spatial_reduction_reference:
                t = {name: value.to(x_dtype) for name, value in t.items()}
            norm1, norm2 = norm_pair
            out, x = operator(t["x"], stride, t["taps"], norm1, t["scale"], norm2, t["local_taps"], t["offset"])
            return torch.cat((out.flatten(), 0.5 * x.flatten()))

        return run

    keys = [(side + kernel // 2 * 2 - kernel) // stride + 1 for side in shape[2:]]
    size = shape[0] * c * (keys[0] * keys[1] + shape[2] * shape[3])
    assert_as_exact_as_pytorch(call(fork_spatial_reduction), call(fork_spatial_reduction_reference), inputs, (size,))
    assert_same_buffers(
        norms[fork_spatial_reduction], norms[fork_spatial_reduction_reference], 1e-4 if dtype == FP32 else 2e-2
    )
