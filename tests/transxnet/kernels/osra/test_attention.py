"""OSRA's attention."""

import pytest
import torch

from tests.transxnet.kernels.compare import FP32, LOW, assert_as_exact_as_pytorch, slow_on_cpu
from transxnet.kernels.osra.attention import attention, attention_reference


@pytest.mark.parametrize(
    ("n", "heads", "width", "size", "keys", "dtype"),
    [
        (2, 2, 19, (13, 9), (7, 7), FP32),
        (2, 1, 17, (5, 7), (3, 3), LOW),
        pytest.param(3, 1, 24, (13, 9), (4, 3), FP32, marks=slow_on_cpu),
        pytest.param(2, 2, 21, (13, 9), (8, 8), FP32, marks=slow_on_cpu),
        pytest.param(2, 2, 28, (13, 9), (4, 3), LOW, marks=slow_on_cpu),
    ],
)
def test_attention_matches_the_reference(n, heads, width, size, keys, dtype):
    torch.manual_seed(0)
    shape = (n, heads * width, *size)
    inputs = {
        "q": torch.randn(shape).to(dtype),
        "kv": torch.randn(n, 2 * heads * width, *keys).to(dtype),
        "bias": torch.randn(1, heads, size[0] * size[1], keys[0] * keys[1]),
    }
    assert_as_exact_as_pytorch(
        lambda t: attention(t["q"], t["kv"], t["bias"]),
        lambda t: attention_reference(t["q"], t["kv"], t["bias"]),
        inputs,
        shape,
    )
