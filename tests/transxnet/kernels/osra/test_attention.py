"""OSRA's attention, to keys that fit in one block and to any number of keys."""

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


@pytest.mark.parametrize(
    ("n", "heads", "width", "size", "keys", "rows", "dtype"),
    [
        pytest.param(1, 1, 19, (9, 8), (13, 6), 20, FP32, id="78 keys, rows interpolated"),
        pytest.param(2, 1, 24, (5, 7), (9, 8), 35, FP32, id="72 keys, all rows"),
        pytest.param(2, 2, 24, (13, 21), (13, 11), 49, LOW, marks=slow_on_cpu, id="13x21"),
        pytest.param(2, 2, 28, (12, 12), (12, 12), 196, FP32, marks=slow_on_cpu, id="144 keys"),
        pytest.param(3, 2, 32, (16, 16), (16, 16), 49, LOW, marks=slow_on_cpu, id="256 keys"),
        pytest.param(1, 2, 21, (25, 42), (25, 42), 49, FP32, marks=slow_on_cpu, id="1050 keys, 25x42"),
        pytest.param(1, 1, 28, (25, 42), (25, 42), 1050, LOW, marks=slow_on_cpu, id="1050 keys, all rows"),
        pytest.param(1, 1, 19, (13, 21), (42, 42), 196, FP32, marks=slow_on_cpu, id="1764 keys"),
        pytest.param(1, 1, 19, (64, 64), (12, 12), 196, FP32, marks=slow_on_cpu, id="64x64"),
    ],
)
def test_attention_to_any_number_of_keys_matches_the_reference(n, heads, width, size, keys, rows, dtype):
    torch.manual_seed(0)
    shape = (n, heads * width, *size)
    inputs = {
        "q": torch.randn(shape).to(dtype),
        "kv": torch.randn(n, 2 * heads * width, *keys).to(dtype),
        "bias": torch.randn(1, heads, rows, keys[0] * keys[1]),
    }
    assert_as_exact_as_pytorch(
        lambda t: attention(t["q"], t["kv"], t["bias"]),
        lambda t: attention_reference(t["q"], t["kv"], t["bias"]),
        inputs,
        shape,
    )
