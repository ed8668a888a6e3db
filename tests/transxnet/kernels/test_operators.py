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
    fork_depthwise_conv,
    fork_depthwise_conv_reference,
)
from transxnet.kernels.dynamic_conv import dynamic_conv, dynamic_conv_reference
from transxnet.kernels.group_norm import fork_group_norm, fork_group_norm_reference
from transxnet.kernels.kernel_generation import Generator
from transxnet.kernels.linear import gelu_norm_linear, gelu_norm_linear_reference
from transxnet.kernels.multiscale_ffn import expand_norm_multiscale, expand_norm_multiscale_reference
from transxnet.kernels.projection import projection, projection_reference
from transxnet.kernels.residual import scaled_residual, scaled_residual_reference
from transxnet.kernels.spatial_reduction import fork_spatial_reduction, fork_spatial_reduction_reference
from transxnet.kernels.token_mixing import mix_tokens, mix_tokens_reference

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


def assert_same_buffers(norms, rtol: float):
    """Running statistics of the norms that kernel and reference went through last."""
    for one, other in zip(*norms.values(), strict=True):
        for (name, value), (_, wanted) in zip(one.named_buffers(), other.named_buffers(), strict=True):
            assert torch.allclose(value.double(), wanted.double(), rtol=rtol, atol=1e-4), name


@pytest.mark.parametrize(
    ("shape", "outputs", "dtype", "training"),
    [
        ((1, 19, 13, 9), 35, FP32, True),
        ((3, 70, 7, 7), 6, LOW, False),
        pytest.param((2, 336, 7, 7), 42, LOW, True, marks=extra),
        pytest.param((5, 76, 13, 9), 300, FP32, True, marks=extra),
        pytest.param((600, 2, 3, 5), 3, FP32, True, marks=extra),
    ],
)
def test_gelu_norm_linear(shape, outputs, dtype, training):
    torch.manual_seed(0)
    c = shape[1]
    inputs = {
        "x": (torch.randn(shape) + torch.linspace(-3, 3, c).view(-1, 1, 1)).to(dtype),
        "weight": 1 + 0.1 * torch.randn(c),
        "bias": 0.1 * torch.randn(c),
        "matrix": torch.randn(outputs, c, 1, 1) / c**0.5,
        "offset": torch.randn(outputs),
    }
    norms = {}

    def call(operator):
        def run(t):
            norm = with_parameters(batch_norm(c, training, t["x"].dtype), t["weight"], t["bias"])
            norms[operator] = [norm]
            if operator is gelu_norm_linear:
                return operator(t["x"], norm, t["matrix"], t["offset"])[0]
            return operator(t["x"], norm, t["matrix"].to(t["x"].dtype), t["offset"].to(t["x"].dtype))

        return run

    ours, theirs = call(gelu_norm_linear), call(gelu_norm_linear_reference)
    assert_as_exact_as_pytorch(ours, theirs, inputs, (shape[0], outputs, *shape[2:]))
    assert_same_buffers(norms, 1e-4 if dtype == FP32 else 1e-2)


@pytest.mark.parametrize(
    ("shape", "parts", "dtype"),
    [
        ((2, 38, 13, 9), 2, BF16),
        ((1, 19, 7, 7), 1, FP32),
        pytest.param((1, 76, 40, 33), 2, FP32, marks=extra),
        pytest.param((3, 336, 7, 7), 1, BF16, marks=extra),
    ],
)
def test_fork_group_norm(shape, parts, dtype):
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
            if not dtype:  # PyTorch wants parameters and values in one dtype.
                norm = with_parameters(norm, t["weight"].to(t["x"].dtype), t["bias"].to(t["x"].dtype))
            normed, x = operator(t["x"], norm, parts, *dtype)
            assert len(normed) == parts
            return torch.cat((torch.cat(normed, 1), 0.5 * x))

        return run

    n, *rest = shape
    ours, theirs = call(fork_group_norm, dtype), call(fork_group_norm_reference)
    assert_as_exact_as_pytorch(ours, theirs, inputs, (2 * n, *rest))


@pytest.mark.parametrize(
    ("shape", "dtype", "dropping", "adding", "training"),
    [
        ((1, 19, 13, 9), FP32, False, True, True),
        ((3, 6, 13, 9), BF16, True, False, False),
        pytest.param((2, 3, 40, 33), FP32, True, True, True, marks=extra),
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
        ((3, 3, 13, 9), 7, LOW),
        pytest.param((1, 19, 7, 7), 7, FP32, marks=extra),
        pytest.param((2, 3, 13, 9), 5, FP32, marks=extra),
        pytest.param((1, 2, 40, 33), 3, FP32, marks=extra),
        pytest.param((2, 76, 13, 9), 7, FP32, marks=extra),
        pytest.param((1, 336, 7, 7), 7, LOW, marks=extra),
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


@pytest.mark.parametrize(("shape", "dtype"), [((2, 3, 7, 9), LOW), pytest.param((2, 19, 14, 14), FP32, marks=extra)])
def test_fork_depthwise_conv(shape, dtype):
    torch.manual_seed(0)
    c = shape[1]
    inputs = {
        "x": torch.randn(shape).to(dtype),
        "weight": (torch.randn(c, 1, 3, 3) / 3).to(dtype),
        "bias": torch.randn(c).to(dtype),
    }

    def call(operator):
        return lambda t: torch.cat(operator(t["x"], t["weight"], t["bias"]))

    ours, theirs = call(fork_depthwise_conv), call(fork_depthwise_conv_reference)
    assert_as_exact_as_pytorch(ours, theirs, inputs, (2 * shape[0], *shape[1:]))


@pytest.mark.parametrize(
    ("shape", "squeezed", "groups", "dtype", "training"),
    [
        ((4, 5, 13, 9), 2, 3, FP32, True),
        ((2, 19, 14, 7), 4, 2, LOW, False),
        pytest.param((4, 19, 7, 7), 4, 2, LOW, True, marks=extra),
        pytest.param((2, 3, 40, 33), 2, 2, FP32, True, marks=extra),
        pytest.param((3, 76, 13, 9), 19, 3, LOW, True, marks=extra),
        pytest.param((2, 336, 7, 7), 84, 4, FP32, True, marks=extra),
        pytest.param((300, 4, 3, 2), 1, 2, FP32, True, marks=extra),
    ],
)
def test_dynamic_conv(shape, squeezed, groups, dtype, training):
    torch.manual_seed(0)
    c = shape[1]
    inputs = {
        "x": (torch.randn(shape) + torch.randn(*shape[:2], 1, 1)).to(dtype),
        "squeeze": torch.randn(squeezed, c, 1, 1) / c**0.5,
        "weight": 1 + 0.1 * torch.randn(squeezed),
        "shift": torch.randn(squeezed),
        "expand": torch.randn(groups * c, squeezed, 1, 1),
        "offset": torch.randn(groups * c),
        "taps": torch.randn(groups, c, 7, 7) / 7,
        "bias": torch.randn(groups, c),
    }
    norms = {}

    def call(operator):
        def run(t):
            norm = with_parameters(batch_norm(squeezed, training, t["x"].dtype), t["weight"], t["shift"])
            norms[operator] = [norm]
            given = t if operator is dynamic_conv else {name: value.to(t["x"].dtype) for name, value in t.items()}
            names = ("expand", "offset", "taps", "bias")
            return operator(given["x"], given["squeeze"], norm, *(given[name] for name in names))

        return run

    assert_as_exact_as_pytorch(call(dynamic_conv), call(dynamic_conv_reference), inputs, shape)
    assert_same_buffers(norms, 1e-4 if dtype == FP32 else 2e-2)


@pytest.mark.parametrize("dtype", [FP32, pytest.param(LOW, marks=extra)])
def test_mix_tokens(dtype):
    """Two operators that are tested apart, each with its half of the channels of one tensor."""
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
            made_with = Generator(*(t[name] for name in list(inputs)[4:]))
            return operator(t["x"], t["q"], t["kv"], t["position"], norm, made_with)

        return run

    assert_as_exact_as_pytorch(call(mix_tokens), call(mix_tokens_reference), inputs, (n, 2 * c, height, width))


@pytest.mark.parametrize(
    ("shape", "stride", "kernel", "dtype", "training"),
    [
        ((3, 3, 13, 9), 2, 5, FP32, True),
        ((2, 2, 9, 12), 4, 7, LOW, False),
        pytest.param((2, 19, 16, 17), 8, 11, LOW, True, marks=extra),
        pytest.param((1, 2, 40, 33), 2, 5, FP32, True, marks=extra),
        pytest.param((9, 76, 7, 7), 2, 5, FP32, True, marks=extra),
        pytest.param((2, 5, 13, 9), 3, 6, FP32, True, marks=extra),
    ],
)
def test_fork_spatial_reduction(shape, stride, kernel, dtype, training):
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
            like = t["x"].dtype
            made = [batch_norm(c, training, like) for _ in range(2)]
            # With a small eps the norm takes the scale out again, and its gradient is 0 but for rounding.
            made[1].eps = 10.0
            norms[operator] = made
            for index, norm in enumerate(made, start=1):
                with_parameters(norm, t[f"weight{index}"], t[f"bias{index}"])
            given = t if operator is fork_spatial_reduction else {name: value.to(like) for name, value in t.items()}
            out, x = operator(
                t["x"], stride, given["taps"], made[0], given["scale"], made[1], given["local_taps"], given["offset"]
            )
            return torch.cat((out.flatten(), 0.5 * x.flatten()))

        return run

    keys = [(side + kernel // 2 * 2 - kernel) // stride + 1 for side in shape[2:]]
    size = shape[0] * c * (keys[0] * keys[1] + shape[2] * shape[3])
    assert_as_exact_as_pytorch(call(fork_spatial_reduction), call(fork_spatial_reduction_reference), inputs, (size,))
    assert_same_buffers(norms, 1e-4 if dtype == FP32 else 2e-2)


@pytest.mark.parametrize(
    ("shape", "outputs", "dtype"),
    [((2, 19, 13, 9), 35, FP32), pytest.param((3, 336, 7, 7), 70, LOW, marks=extra)],
)
def test_projection(shape, outputs, dtype):
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


@pytest.mark.parametrize(
    ("n", "heads", "width", "size", "keys", "dtype"),
    [
        (2, 2, 19, (13, 9), (7, 7), FP32),
        (2, 1, 17, (5, 7), (3, 3), LOW),
        pytest.param(3, 1, 24, (13, 9), (4, 3), FP32, marks=extra),
        pytest.param(2, 2, 21, (13, 9), (8, 8), FP32, marks=extra),
        pytest.param(2, 2, 28, (13, 9), (4, 3), LOW, marks=extra),
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
    ("shape", "ratio", "dtype", "training"),
    [
        ((2, 5, 9, 7), 4, FP32, True),
        pytest.param((1, 3, 9, 7), 2, LOW, False, marks=extra),
        pytest.param((1, 4, 40, 33), 2, FP32, True, marks=extra),
        pytest.param((2, 11, 13, 9), 2, LOW, True, marks=extra),
        pytest.param((2, 38, 7, 7), 4, FP32, True, marks=extra),
    ],
)
def test_feed_forward(shape, ratio, dtype, training):
    """Both operators of MS-FFN, one handing the other the pieces of its norm, and a residual's norm the last pieces."""
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
            like = t["x"].dtype
            made = [batch_norm(width, training, like) for width in (c, c, dim)]
            for index, norm in enumerate(made, start=1):
                with_parameters(norm, t[f"norm{index}_weight"], t[f"norm{index}_bias"])
            norms[kernels] = made
            names = ("expand", "contract", *(f"{kind}{k}" for kind in ("weight", "bias") for k in (1, 3, 5, 7)))
            expand, contract, *convs = (t[name] if kernels else t[name].to(like) for name in names)
            weights, biases = convs[:4], convs[4:]
            end = (made[2], t["scale"], t["offset"], None, None)
            if kernels:
                d, pieces = expand_norm_multiscale(t["x"], expand, made[0], weights, biases)
                out, pieces = gelu_norm_linear(d, made[1], contract, None, pieces)
                return scaled_residual(t["x"], out, *end, pieces)
            d = expand_norm_multiscale_reference(t["x"], expand, made[0], weights, biases)
            out = gelu_norm_linear_reference(d, made[1], contract, None)
            return scaled_residual_reference(t["x"], out, *end).to(like)

        return run

    assert_as_exact_as_pytorch(call(True), call(False), inputs, shape)
    assert_same_buffers(norms, 1e-4 if dtype == FP32 else 2e-2)
