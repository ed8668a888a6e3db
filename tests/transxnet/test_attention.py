"""Attention in bounded memory, and the resizing of the position bias, against PyTorch's own operators."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.benchmarks.attention import kept_bytes
from transxnet.attention import attention, stage_bias
from transxnet.resample import adaptive_mean_gradient, resize_bicubic, resize_bilinear_gradient


def _plain(q: Tensor, kv: Tensor, table: Tensor) -> Tensor:
    """Return attention as the paper's authors write it: every logit at once, the bias resized as an image."""
    heads, queries, keys = table.shape[1], q.shape[2:].numel(), kv.shape[2:].numel()
    bias = F.interpolate(table, size=(queries, keys), mode="bicubic", align_corners=False)
    rows = q.flatten(2).unflatten(1, (heads, -1)).transpose(-1, -2)
    k, v = kv.flatten(2).unflatten(1, (2, heads, -1)).unbind(1)
    p = torch.softmax((rows @ k) * (rows.shape[-1] ** -0.5) + bias, dim=-1)
    return (p @ v.transpose(-1, -2)).transpose(-1, -2).reshape(q.shape)


@pytest.mark.parametrize(
    ("table", "size"),
    [
        ((3136, 49), (9216, 144)),
        ((3136, 49), (67200, 90)),
        pytest.param((3136, 49), (67200, 1050), marks=pytest.mark.slow),
        pytest.param((784, 49), (28224, 1764), marks=pytest.mark.slow),
        ((3136, 49), (325, 6)),
        ((3136, 49), (1, 1)),
        ((2, 3), (1000, 999)),
        ((1, 1), (5, 70)),
    ],
)
def test_resizing_one_axis_after_the_other_equals_pytorch(table: tuple[int, int], size: tuple[int, int]):
    torch.manual_seed(0)
    x = torch.rand(1, 1, *table) * 2 - 1
    actual = resize_bicubic(resize_bicubic(x, 3, size[1]), 2, size[0])
    expected = F.interpolate(x, size=size, mode="bicubic", align_corners=False)
    assert (actual - expected).abs().max() < 1e-6


@pytest.mark.parametrize(("table", "size"), [((49, 16), (700, 90)), ((300, 9), (41, 4)), ((5, 1), (1, 6))])
def test_the_gradient_of_resizing_equals_pytorchs(table: tuple[int, int], size: tuple[int, int]):
    torch.manual_seed(0)
    x = torch.randn(1, 2, *table, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(1, 2, *size, dtype=torch.float64)
    (actual,) = torch.autograd.grad(resize_bicubic(resize_bicubic(x, 3, size[1]), 2, size[0]), x, grad)
    (expected,) = torch.autograd.grad(F.interpolate(x, size=size, mode="bicubic", align_corners=False), x, grad)
    assert torch.allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [(7, 7), (14, 9), (13, 50), (3, 1)])
def test_the_gradient_of_adaptive_means_equals_pytorchs(size: tuple[int, int]):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    (expected,) = torch.autograd.grad(F.adaptive_avg_pool2d(x, 7), x, grad)
    assert torch.allclose(adaptive_mean_gradient(grad, *size), expected, rtol=1e-12)


@pytest.mark.parametrize(("size", "resized"), [((8, 13), (32, 50)), ((16, 16), (8, 31)), ((1, 3), (5, 3))])
def test_the_gradient_of_bilinear_resizing_equals_pytorchs(size: tuple[int, int], resized: tuple[int, int]):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(2, 3, *resized, dtype=torch.float64)
    (expected,) = torch.autograd.grad(F.interpolate(x, size=resized, mode="bilinear", align_corners=False), x, grad)
    assert torch.allclose(resize_bilinear_gradient(grad, *size), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "heads", "width", "size", "keys", "table"),
    [
        (4, 1, 24, (50, 90), (12, 12), (3136, 49)),
        (3, 2, 19, (13, 9), (13, 9), (117, 117)),
        (1, 4, 28, (25, 42), (25, 42), (196, 49)),
        (2, 2, 21, (11, 8), (11, 8), (900, 144)),
    ],
)
def test_attention_in_bounded_memory_equals_all_at_once(n, heads, width, size, keys, table):
    torch.manual_seed(0)
    inputs = [
        torch.randn(n, heads * width, *size),
        torch.randn(n, 2 * heads * width, *keys),
        torch.randn(1, heads, *table),
    ]
    grad = torch.randn(inputs[0].shape)
    queries, number = inputs[0].shape[2:].numel(), inputs[1].shape[2:].numel()

    def bounded(q: Tensor, kv: Tensor, table: Tensor) -> Tensor:
        return attention(q, kv, stage_bias(table, queries, number))

    def run(operator, dtype: torch.dtype) -> list[Tensor]:
        leaves = [value.to(dtype).requires_grad_() for value in inputs]
        out = operator(*leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, grad.to(dtype))]

    exact = run(_plain, torch.float64)
    for actual, again, wanted in zip(run(bounded, torch.float64), run(bounded, torch.float64), exact, strict=True):
        assert torch.allclose(actual, wanted, rtol=1e-9, atol=1e-11)
        assert torch.equal(actual, again), "two runs differ"
    scales = [wanted.norm() for wanted in exact]
    plain = [(a - e).norm() / s for a, e, s in zip(run(_plain, torch.float32), exact, scales, strict=True)]
    for actual, wanted, scale in zip(run(bounded, torch.float32), exact, scales, strict=True):
        assert (actual - wanted).norm() / scale <= 2 * max(plain) + 4 * torch.finfo(torch.float32).eps


def test_channels_last_maps_have_channels_last_gradients_of_the_same_values():
    """On a CPU the layers before attention have such maps; another layout would be converted there."""
    torch.manual_seed(0)
    inputs = [torch.randn(2, 38, 13, 9), torch.randn(2, 76, 11, 8), torch.randn(1, 2, 50, 88)]
    grad, found = torch.randn(2, 38, 13, 9), []
    for layout in (torch.contiguous_format, torch.channels_last):
        q, kv, bias = (x.contiguous(memory_format=layout).requires_grad_() for x in inputs)
        out = attention(q, kv, bias)
        gradients = torch.autograd.grad(out, (q, kv, bias), grad)
        assert all(x.is_contiguous(memory_format=layout) for x in gradients[:2])
        found.append((out, *gradients))
    assert all(torch.allclose(*pair, rtol=1e-4, atol=1e-5) for pair in zip(*found, strict=True))


def test_a_dense_map_keeps_no_probabilities():
    """At 800 x 1344, batch 2, the 18 attentions of T keep 0.3 GB at most, counted on meta tensors."""
    assert kept_bytes("transxnet_t", 800, 1344, 2) < 0.3e9
