"""IDConv and attention side by side."""

import pytest
import torch

from tests.transxnet.kernels.compare import (
    FP32,
    LOW,
    assert_as_exact_as_pytorch,
    batch_norm,
    slow_on_cpu,
    with_parameters,
)
from transxnet.kernels.idconv.generator import GeneratorParameters
from transxnet.kernels.token_mixing import mix_tokens, mix_tokens_reference


@pytest.mark.parametrize("dtype", [FP32, pytest.param(LOW, marks=slow_on_cpu)])
def test_mix_tokens_matches_both_operators(dtype):
    torch.manual_seed(0)
    shape, squeezed, groups = (3, 6, 9, 7), 2, 2
    n, c, height, width = shape
    inputs = {
        "x": torch.randn(shape).to(dtype),
        "q": torch.randn(shape).to(dtype),
        "kv": torch.randn(n, 2 * c, 4, 3).to(dtype),
        "position": torch.randn(1, 2, height * width, 12),
        "squeeze": torch.randn(squeezed, c, 1, 1) / c**0.5,
        "weight": 1 + 0.1 * torch.randn(squeezed),
        "shift": torch.randn(squeezed),
        "expand": torch.randn(groups * c, squeezed, 1, 1),
        "offset": torch.randn(groups * c),
        "taps": torch.randn(groups, c, 7, 7) / 7,
        "bias": torch.randn(groups, c),
    }

    def call(operator):
        def run(t):
            norm = with_parameters(batch_norm(squeezed, True, t["x"].dtype), t["weight"], t["shift"])
            if operator is mix_tokens_reference:
                t = {name: value.to(t["x"].dtype) for name, value in t.items()}
            parameters = GeneratorParameters(*(t[name] for name in list(inputs)[4:]))
            return operator(t["x"], t["q"], t["kv"], t["position"], norm, parameters)

        return run

    assert_as_exact_as_pytorch(call(mix_tokens), call(mix_tokens_reference), inputs, (n, 2 * c, height, width))
