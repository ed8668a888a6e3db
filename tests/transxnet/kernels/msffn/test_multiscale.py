"""MS-FFN with the residual after it."""

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
from transxnet.kernels.msffn.multiscale import expand_norm_multiscale, expand_norm_multiscale_reference
from transxnet.kernels.residual import scaled_residual, scaled_residual_reference


@pytest.mark.parametrize(
    ("shape", "ratio", "dtype", "training"),
    [
        ((2, 5, 9, 7), 2, FP32, True),
        pytest.param((2, 5, 9, 7), 4, FP32, True, marks=slow_on_cpu),
        pytest.param((1, 3, 9, 7), 2, LOW, False, marks=slow_on_cpu),
        pytest.param((1, 4, 40, 33), 2, FP32, True, marks=slow_on_cpu),
        pytest.param((2, 11, 13, 9), 2, LOW, True, marks=slow_on_cpu),
        pytest.param((2, 38, 7, 7), 4, FP32, True, marks=slow_on_cpu),
        pytest.param((2, 4, 13, 21), 2, LOW, True, marks=slow_on_cpu, id="13x21"),
        pytest.param((1, 3, 25, 42), 2, FP32, True, marks=slow_on_cpu, id="25x42"),
        pytest.param((1, 2, 64, 64), 2, LOW, True, marks=slow_on_cpu, id="64x64"),
    ],
)
def test_ms_ffn_and_residual_match_the_reference(shape, ratio, dtype, training):
    """Each operator passes the partial statistics of its output to the next one's norm."""
    torch.manual_seed(0)
    dim, c = shape[1], shape[1] * ratio
    windows = (c - 3 * (c // 4), c // 4, c // 4, c // 4)
    inputs = {"x": torch.randn(shape).to(dtype), "expand": torch.randn(c, dim, 1, 1) / dim**0.5}
    for window, kernel in zip(windows, (1, 3, 5, 7), strict=True):
        inputs[f"weight{kernel}"] = torch.randn(window, 1, kernel, kernel) / kernel
        inputs[f"bias{kernel}"] = torch.randn(window)
    for norm, width in ((1, c), (2, c), (3, dim)):
        inputs[f"norm{norm}_weight"], inputs[f"norm{norm}_bias"] = 1 + 0.1 * torch.randn(width), torch.randn(width)
    inputs["contract"] = torch.randn(dim, c, 1, 1) / c**0.5
    inputs |= {"scale": torch.randn(dim, 1, 1, 1), "offset": torch.randn(dim)}
    norms = {}

    def call(kernels):
        def run(t):
            x_dtype = t["x"].dtype
            batch_norms = [batch_norm(width, training, x_dtype) for width in (c, c, dim)]
            for index, norm in enumerate(batch_norms, start=1):
                with_parameters(norm, t[f"norm{index}_weight"], t[f"norm{index}_bias"])
            norms[kernels] = batch_norms
            names = ("expand", "contract", *(f"{kind}{k}" for kind in ("weight", "bias") for k in (1, 3, 5, 7)))
            expand, contract, *convs = (t[name] if kernels else t[name].to(x_dtype) for name in names)
            weights, biases = convs[:4], convs[4:]
            end = (batch_norms[2], t["scale"], t["offset"], None, None)
            if kernels:
                d, partial_stats = expand_norm_multiscale(t["x"], expand, batch_norms[0], weights, biases)
                out, partial_stats = gelu_norm_linear(d, batch_norms[1], contract, None, partial_stats)
                return scaled_residual(t["x"], out, *end, partial_stats)
            d = expand_norm_multiscale_reference(t["x"], expand, batch_norms[0], weights, biases)
            out = gelu_norm_linear_reference(d, batch_norms[1], contract, None)
            return scaled_residual_reference(t["x"], out, *end).to(x_dtype)

        return run

    assert_as_exact_as_pytorch(call(True), call(False), inputs, shape)
    assert_same_buffers(norms[True], norms[False], 1e-4 if dtype == FP32 else 2e-2)
