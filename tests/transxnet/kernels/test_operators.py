"""Every kernel on awkward shapes: run by `test_kernels.py` through triton's interpreter, or directly on a GPU."""

import os

import pytest
import torch
from torch import nn

from tests.transxnet.kernels.compare import DEVICE, assert_as_exact_as_pytorch

if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs on a GPU, or in test_kernels.py through the interpreter", allow_module_level=True)

from transxnet.kernels.attention import attention, attention_reference
from transxnet.kernels.depthwise_conv import (
    depthwise_conv,
    depthwise_conv_reference,
    dynamic_conv,
    dynamic_conv_reference,
    multiscale_conv,
    multiscale_conv_reference,
)
from transxnet.kernels.multiscale_ffn import norm_multiscale_norm, norm_multiscale_norm_reference
from transxnet.kernels.norm_act import gelu_batch_norm, gelu_batch_norm_reference
from transxnet.kernels.residual import scaled_residual, scaled_residual_reference

# Triton's interpreter multiplies bf16 matrices as if their bits were integers.
LOW = torch.bfloat16 if DEVICE == "cuda" else torch.float16
FP32, BF16 = torch.float32, torch.bfloat16
# What the interpreter takes long for.
extra = pytest.mark.slow if DEVICE == "cpu" else pytest.mark.gpu


def batch_norm(channels: int, training: bool, dtype: torch.dtype) -> nn.BatchNorm2d:
    """A norm with statistics that are not the initial ones; fp64 for the exact run, fp32 otherwise."""
    torch.manual_seed(2)
    norm = nn.BatchNorm2d(channels)
    norm.running_mean = torch.randn(channels)
    norm.running_var = torch.rand(channels) + 0.5
    norm = norm.to(DEVICE, torch.float64 if dtype == torch.float64 else FP32)
    return norm.train(training)


def with_parameters(norm: nn.BatchNorm2d, weight: torch.Tensor, bias: torch.Tensor) -> nn.BatchNorm2d:
    """`norm` reading the given leaves, so that their gradients can be compared."""
    del norm.weight, norm.bias
    norm.weight, norm.bias = weight, bias  # pyright: ignore[reportAttributeAccessIssue]
    return norm


@pytest.mark.parametrize(
    ("shape", "dtype", "training"),
    [
        ((1, 19, 7, 7), FP32, True),
        ((3, 6, 13, 9), BF16, True),
        ((3, 6, 13, 9), FP32, False),
        ((2, 3, 40, 33), FP32, True),
        pytest.param((5, 76, 7, 7), FP32, True, marks=extra),
        pytest.param((2, 336, 13, 9), BF16, True, marks=extra),
        pytest.param((600, 2, 3, 5), FP32, True, marks=extra),
    ],
)
def test_gelu_batch_norm(shape, dtype, training):
    torch.manual_seed(0)
    c = shape[1]
    inputs = {
        "x": (torch.randn(shape) + torch.linspace(-3, 3, c).view(-1, 1, 1)).to(dtype),
        "weight": 1 + 0.1 * torch.randn(c),
        "bias": 0.1 * torch.randn(c),
    }
    norms = {}

    def call(operator):
        def run(t):
            norm = norms[operator] = batch_norm(c, training, t["x"].dtype)
            return operator(t["x"], with_parameters(norm, t["weight"], t["bias"]))

        return run

    assert_as_exact_as_pytorch(call(gelu_batch_norm), call(gelu_batch_norm_reference), inputs, shape)
    for (name, ours), (_, theirs) in zip(
        norms[gelu_batch_norm].named_buffers(), norms[gelu_batch_norm_reference].named_buffers(), strict=True
    ):
        assert torch.allclose(ours.double(), theirs.double(), rtol=1e-4 if dtype == torch.float32 else 1e-2), name


@pytest.mark.parametrize(
    ("shape", "dtype", "dropping", "adding", "training"),
    [
        ((1, 19, 7, 7), FP32, False, True, True),
        ((3, 6, 13, 9), FP32, True, True, False),
        ((3, 6, 13, 9), BF16, True, False, True),
        ((2, 3, 40, 33), FP32, True, True, True),
        pytest.param((3, 76, 7, 7), FP32, True, True, True, marks=extra),
        pytest.param((2, 336, 13, 9), BF16, False, True, True, marks=extra),
    ],
)
def test_scaled_residual(shape, dtype, dropping, adding, training):
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


@pytest.mark.parametrize(
    ("shape", "kernel", "dtype"),
    [
        ((1, 19, 7, 7), 7, FP32),
        ((2, 3, 13, 9), 5, BF16),
        ((1, 2, 40, 33), 3, FP32),
        pytest.param((2, 76, 13, 9), 7, FP32, marks=extra),
        pytest.param((1, 336, 7, 7), 7, BF16, marks=extra),
    ],
)
def test_depthwise_conv(shape, kernel, dtype):
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
    ("shape", "dtype"),
    [
        ((2, 19, 7, 7), FP32),
        pytest.param((3, 22, 13, 9), BF16, marks=extra),
        pytest.param((1, 76, 40, 33), FP32, marks=extra),
    ],
)
def test_multiscale_conv(shape, dtype):
    torch.manual_seed(0)
    quarter = shape[1] // 4
    windows = (shape[1] - 3 * quarter, quarter, quarter, quarter)
    inputs = {"x": torch.randn(shape).to(dtype)}
    for window, kernel in zip(windows, (1, 3, 5, 7), strict=True):
        inputs[f"weight{kernel}"] = (torch.randn(window, 1, kernel, kernel) / kernel).to(dtype)
        inputs[f"bias{kernel}"] = torch.randn(window).to(dtype)

    def call(operator):
        return lambda t: operator(
            t["x"], [t[f"weight{k}"] for k in (1, 3, 5, 7)], [t[f"bias{k}"] for k in (1, 3, 5, 7)]
        )

    assert_as_exact_as_pytorch(call(multiscale_conv), call(multiscale_conv_reference), inputs, shape)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((3, 6, 13, 9), FP32),
        ((1, 19, 7, 7), BF16),
        pytest.param((2, 2, 40, 33), FP32, marks=extra),
        pytest.param((2, 76, 13, 9), BF16, marks=extra),
    ],
)
def test_dynamic_conv(shape, dtype):
    torch.manual_seed(0)
    inputs = {
        "x": torch.randn(shape).to(dtype),
        "weight": (torch.randn(*shape[:2], 7, 7) / 7).to(dtype),
        "bias": torch.randn(shape[:2]).to(dtype),
    }
    assert_as_exact_as_pytorch(
        lambda t: dynamic_conv(t["x"], t["weight"], t["bias"]),
        lambda t: dynamic_conv_reference(t["x"], t["weight"], t["bias"]),
        inputs,
        shape,
    )


@pytest.mark.parametrize(
    ("n", "heads", "width", "size", "keys", "dtype"),
    [
        (1, 2, 19, (7, 7), (7, 7), FP32),
        (3, 1, 24, (13, 9), (4, 3), FP32),
        pytest.param(2, 2, 21, (13, 9), (8, 8), FP32, marks=extra),
        (2, 2, 28, (13, 9), (4, 3), LOW),
    ],
)
def test_attention(n, heads, width, size, keys, dtype):
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
    ("shape", "dtype", "training"),
    [
        ((3, 19, 7, 5), FP32, True),
        ((2, 6, 9, 7), BF16, False),
        pytest.param((1, 8, 40, 33), FP32, True, marks=extra),
        pytest.param((2, 22, 13, 9), BF16, True, marks=extra),
        pytest.param((2, 76, 7, 7), FP32, True, marks=extra),
    ],
)
def test_norm_multiscale_norm(shape, dtype, training):
    torch.manual_seed(0)
    c = shape[1]
    windows = (c - 3 * (c // 4), c // 4, c // 4, c // 4)
    inputs = {"h": torch.randn(shape).to(dtype)}
    for window, kernel in zip(windows, (1, 3, 5, 7), strict=True):
        inputs[f"weight{kernel}"] = torch.randn(window, 1, kernel, kernel) / kernel
        inputs[f"bias{kernel}"] = torch.randn(window)
    for norm in "12":
        inputs[f"norm{norm}_weight"], inputs[f"norm{norm}_bias"] = 1 + 0.1 * torch.randn(c), 0.1 * torch.randn(c)
    norms = {}

    def call(operator):
        def run(t):
            made = [batch_norm(c, training, t["h"].dtype) for _ in range(2)]
            for index, norm in enumerate(made, start=1):
                with_parameters(norm, t[f"norm{index}_weight"], t[f"norm{index}_bias"])
            norms[operator] = made
            sizes = (1, 3, 5, 7)
            cast = [t[f"{kind}{k}"] for kind in ("weight", "bias") for k in sizes]
            if operator is norm_multiscale_norm_reference:
                cast = [value.to(t["h"].dtype) for value in cast]
            return operator(t["h"], made[0], cast[:4], cast[4:], made[1])

        return run

    ours, theirs = norm_multiscale_norm, norm_multiscale_norm_reference
    assert_as_exact_as_pytorch(call(ours), call(theirs), inputs, shape)
    for one, other in zip(norms[ours], norms[theirs], strict=True):
        for (name, value), (_, wanted) in zip(one.named_buffers(), other.named_buffers(), strict=True):
            assert torch.allclose(value.double(), wanted.double(), rtol=1e-4 if dtype == FP32 else 2e-2, atol=1e-4), (
                name
            )
