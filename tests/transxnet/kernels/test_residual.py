"""End of a branch: BatchNorm, LayerScale, stochastic depth and residual."""

import pytest
import torch

from tests.transxnet.kernels.compare import (
    BF16,
    FP32,
    assert_as_exact_as_pytorch,
    batch_norm,
    slow_on_cpu,
    with_parameters,
)
from transxnet.kernels.residual import scaled_residual, scaled_residual_reference


@pytest.mark.parametrize(
    ("shape", "dtype", "dropping", "adding", "training"),
    [
        ((1, 19, 13, 9), FP32, False, True, True),
        ((3, 6, 13, 9), BF16, True, False, False),
        pytest.param((2, 3, 40, 33), FP32, True, True, True, marks=slow_on_cpu),
        pytest.param((3, 76, 7, 7), FP32, True, True, True, marks=slow_on_cpu),
        pytest.param((2, 336, 13, 9), BF16, False, True, True, marks=slow_on_cpu),
    ],
)
def test_scaled_residual_matches_the_reference(shape, dtype, dropping, adding, training):
    torch.manual_seed(0)
    c = shape[1]
    inputs = {
        "x": torch.randn(shape).to(dtype),
        "skip": torch.randn(shape).to(dtype),
        "weight": 1 + 0.1 * torch.randn(c),
        "bias": 0.1 * torch.randn(c),
        "scale": 0.3 * torch.randn(c, 1, 1, 1),
        "offset": 0.1 * torch.randn(c),
    }
    if adding:
        inputs["addend"] = torch.randn(shape).to(dtype)
    factor = torch.tensor([0.0, 1.25, 1.25])[: shape[0]].view(-1, 1, 1, 1) if dropping else None

    def call(operator):
        def run(t):
            norm = with_parameters(batch_norm(c, training, t["x"].dtype), t["weight"], t["bias"])
            given = None if factor is None else factor.to(t["x"])
            out = operator(t["skip"], t["x"], norm, t["scale"], t["offset"], given, t.get("addend"))
            return out.to(t["x"].dtype)

        return run

    assert_as_exact_as_pytorch(call(scaled_residual), call(scaled_residual_reference), inputs, shape)
