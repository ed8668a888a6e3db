"""Start of a block's branch: GroupNorm and the skip connection."""

import pytest
import torch
from torch import nn

from tests.transxnet.kernels.compare import BF16, DEVICE, FP32, assert_as_exact_as_pytorch, slow_on_cpu, with_parameters
from transxnet.kernels.group_norm import fork_group_norm, fork_group_norm_reference


@pytest.mark.parametrize(
    ("shape", "parts", "dtype"),
    [
        ((2, 38, 13, 9), 2, BF16),
        ((1, 19, 7, 7), 1, FP32),
        pytest.param((1, 76, 40, 33), 2, FP32, marks=slow_on_cpu),
        pytest.param((3, 336, 7, 7), 1, BF16, marks=slow_on_cpu),
    ],
)
def test_fork_group_norm_matches_the_reference(shape, parts, dtype):
    torch.manual_seed(0)
    c = shape[1]
    inputs = {
        "x": (torch.randn(shape) + 3).to(dtype),
        "weight": 1 + 0.1 * torch.randn(c),
        "bias": 0.1 * torch.randn(c),
    }

    def call(operator, *dtype):
        def run(t):
            norm = with_parameters(nn.GroupNorm(1, c).to(DEVICE), t["weight"], t["bias"])
            if not dtype:  # PyTorch requires parameters and values of one dtype.
                norm = with_parameters(norm, t["weight"].to(t["x"].dtype), t["bias"].to(t["x"].dtype))
            normed, x = operator(t["x"], norm, parts, *dtype)
            assert len(normed) == parts
            return torch.cat((torch.cat(normed, 1), 0.5 * x))

        return run

    n, *rest = shape
    assert_as_exact_as_pytorch(call(fork_group_norm, dtype), call(fork_group_norm_reference), inputs, (2 * n, *rest))
