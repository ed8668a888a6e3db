"""Gradient checkpointing saves memory and changes no result."""

import pytest
import torch

import transxnet
from pipeline.config.schema import OptimizerConfig
from pipeline.engine.flat import FlatModel
from pipeline.engine.optimizer import parameter_groups
from transxnet.recompute import recompute_in_backward


def trained(precision: torch.dtype, *, recompute: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients and buffers after two forward and backward passes, and the bytes saved for the backward passes."""
    torch.manual_seed(0)
    network = transxnet.build("transxnet_n", num_classes=5, image_size=32, drop_path_rate=0.4)
    if recompute:
        assert recompute_in_backward(network, tuple(transxnet.leaf_modules())) == sum(network.config.depths)
    groups = parameter_groups(network, OptimizerConfig())
    model = FlatModel(network, {name: list(group.names) for name, group in groups.items()}).train()
    kept = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    for number in range(2):
        torch.manual_seed(number)
        images = torch.randn(2, 3, 32, 32)
        autocast = torch.autocast("cpu", precision, enabled=precision != torch.float32)
        with autocast, torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model(images).float().logsumexp(1).square().mean()
        loss.backward()
    state = {name: buffer.clone() for name, buffer in network.named_buffers()}
    return state | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, kept


@pytest.mark.parametrize("precision", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.thorough)])
def test_gradients_and_statistics_are_equal_in_a_fraction_of_the_memory(precision: torch.dtype):
    expected, kept_before = trained(precision, recompute=False)
    result, kept = trained(precision, recompute=True)
    assert result.keys() == expected.keys()
    assert all(torch.equal(result[name], value) for name, value in expected.items())
    assert any(name.endswith("num_batches_tracked") and value == 2 for name, value in result.items())
    assert kept < kept_before / 4


def test_without_gradients_nothing_is_recomputed():
    network = transxnet.build("transxnet_n", num_classes=5, image_size=32).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = network(images)
        recompute_in_backward(network, tuple(transxnet.leaf_modules()))
        assert torch.equal(network(images), before)
