"""Depthwise convolutions with shared weights."""

import pytest
import torch

from tests.transxnet.kernels.compare import FP32, LOW, assert_as_exact_as_pytorch, slow_on_cpu
from transxnet.kernels.common.depthwise_conv import (
    depthwise_conv,
    depthwise_conv_reference,
    fork_depthwise_conv,
    fork_depthwise_conv_reference,
)


@pytest.mark.parametrize(
    ("shape", "kernel", "dtype"),
    [
        ((3, 3, 13, 9), 7, LOW),
        pytest.param((1, 19, 7, 7), 7, FP32, marks=slow_on_cpu),
        pytest.param((2, 3, 13, 9), 5, FP32, marks=slow_on_cpu),
        pytest.param((1, 2, 40, 33), 3, FP32, marks=slow_on_cpu),
        pytest.param((2, 76, 13, 9), 7, FP32, marks=slow_on_cpu),
        pytest.param((1, 336, 7, 7), 7, LOW, marks=slow_on_cpu),
        pytest.param((2, 3, 13, 21), 7, LOW, marks=slow_on_cpu, id="13x21"),
        pytest.param((1, 3, 25, 42), 5, FP32, marks=slow_on_cpu, id="25x42"),
        pytest.param((1, 2, 64, 64), 7, LOW, marks=slow_on_cpu, id="64x64"),
    ],
)
def test_depthwise_conv_matches_the_reference(shape, kernel, dtype):
    torch.manual_seed(0)
    c = shape[1]
    inputs = {
        "x": torch.randn(shape).to(dtype),
        "weight": (torch.randn(c, 1, kernel, kernel) / kernel).to(dtype),
        "bias": torch.randn(c).to(dtype),
    }
    assert_as_exact_as_pytorch(
        lambda t: depthwise_conv(t["x"], t["weight"], t["bias"]),
        lambda t: depthwise_conv_reference(t["x"], t["weight"], t["bias"]),
        inputs,
        shape,
    )


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 3, 7, 9), LOW), pytest.param((2, 19, 14, 14), FP32, marks=slow_on_cpu)]
)
def test_fork_depthwise_conv_adds_both_gradients_of_its_input(shape, dtype):
    torch.manual_seed(0)
    c = shape[1]
    inputs = {
        "x": torch.randn(shape).to(dtype),
        "weight": (torch.randn(c, 1, 3, 3) / 3).to(dtype),
        "bias": torch.randn(c).to(dtype),
    }

    def call(operator):
        return lambda t: torch.cat(operator(t["x"], t["weight"], t["bias"]))

    assert_as_exact_as_pytorch(
        call(fork_depthwise_conv), call(fork_depthwise_conv_reference), inputs, (2 * shape[0], *shape[1:])
    )
