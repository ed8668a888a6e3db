"""The CPU's depthwise convolution against PyTorch's own."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from tests.transxnet.fixtures import distance
from transxnet.depthwise import depthwise_conv

NCHW, NHWC = torch.contiguous_format, torch.channels_last
SHAPES = [(1, 19, 7, 7), (3, 76, 13, 9), (2, 5, 1, 2), (1, 38, 16, 33)]
QUICK = [
    *((7, shape, NHWC) for shape in SHAPES),
    *((kernel, SHAPES[0], NCHW) for kernel in (1, 3, 5, 7)),
]
MORE = [case for case in itertools.product((1, 3, 5, 7), SHAPES, (NCHW, NHWC)) if case not in QUICK]


@pytest.mark.parametrize(
    ("kernel", "shape", "layout"), [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]
)
def test_output_and_gradients_equal_conv2d(kernel: int, shape: tuple[int, ...], layout: torch.memory_format):
    n, c, h, w = shape
    torch.manual_seed(0)
    x = torch.randn(n, c, h, w, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(c, 1, kernel, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(c, dtype=torch.float64, requires_grad=True)
    out, expected = depthwise_conv(x, weight, bias), F.conv2d(x, weight, bias, padding=kernel // 2, groups=c)
    grad = torch.randn_like(out)
    assert distance(out, expected) < 1e-14
    for name, actual, wanted in zip(
        ("x", "weight", "bias"),
        torch.autograd.grad(out, (x, weight, bias), grad),
        torch.autograd.grad(expected, (x, weight, bias), grad),
        strict=True,
    ):
        assert distance(actual, wanted) < 1e-13, name


def test_under_autocast_gradients_have_the_dtype_of_the_parameters():
    torch.manual_seed(0)
    x = torch.randn(2, 8, 9, 9, requires_grad=True)
    weight, bias = torch.randn(8, 1, 7, 7, requires_grad=True), torch.randn(8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = depthwise_conv(x, weight, bias)
    exact = F.conv2d(x, weight, bias, padding=3, groups=8)
    grad = torch.randn_like(exact)
    low = torch.autograd.grad(out, (x, weight, bias), grad.to(out.dtype))
    high = torch.autograd.grad(exact, (x, weight, bias), grad)
    assert out.dtype == torch.bfloat16
    assert all(a.dtype == torch.float32 and distance(a, b) < 0.01 for a, b in zip(low, high, strict=True))
