"""OSRA's projections."""

import pytest
import torch

from tests.transxnet.kernels.compare import FP32, LOW, assert_as_exact_as_pytorch, slow_on_cpu
from transxnet.kernels.osra.projection import projection, projection_reference


@pytest.mark.parametrize(
    ("shape", "outputs", "dtype"),
    [
        ((2, 19, 13, 9), 35, FP32),
        pytest.param((3, 336, 7, 7), 70, LOW, marks=slow_on_cpu),
        pytest.param((2, 19, 13, 21), 35, LOW, marks=slow_on_cpu, id="13x21"),
        pytest.param((1, 19, 25, 42), 35, FP32, marks=slow_on_cpu, id="25x42"),
        pytest.param((1, 19, 64, 64), 35, LOW, marks=slow_on_cpu, id="64x64"),
    ],
)
def test_projection_matches_the_reference(shape, outputs, dtype):
    torch.manual_seed(0)
    c = shape[1]
    inputs = {
        "x": torch.randn(shape).to(dtype),
        "matrix": (torch.randn(outputs, c, 1, 1) / c**0.5).to(dtype),
        "offset": torch.randn(outputs).to(dtype),
    }
    assert_as_exact_as_pytorch(
        lambda t: projection(t["x"], t["matrix"], t["offset"]),
        lambda t: projection_reference(t["x"], t["matrix"], t["offset"]),
        inputs,
        (shape[0], outputs, *shape[2:]),
    )
