"""The whole model on the kernels against the reference backend, from the same state."""

import dataclasses
import os

import pytest
import torch
from torch import Tensor, nn

import transxnet
from tests.transxnet.fixtures import distance, filled_state, images
from tests.transxnet.kernels.compare import DEVICE
from transxnet import TransXNet, TransXNetConfig, from_upstream
from transxnet.layers import ScaledResidual

if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs on a GPU, or in test_kernels.py through the interpreter", allow_module_level=True)


TINY = TransXNetConfig(
    name="transxnet_tiny_test",
    depths=(1, 1, 1, 1),
    dims=(8, 8, 12, 16),
    num_heads=(1, 1, 2, 2),
    num_groups=(2, 2, 2, 3),
    mlp_ratios=(2, 2, 2, 2),
    layer_scale_init=0.5,
    num_classes=5,
    image_size=32,
)


class GivenMask(nn.Module):
    """Stochastic depth that leaves out the second sample of every branch."""

    def forward(self, x: Tensor) -> Tensor:
        factor = x.new_full((x.shape[0], 1, 1, 1), 1.25)
        factor[1] = 0
        return factor


def _compare(config: TransXNetConfig, size: int, batch: int) -> None:
    """Output, gradients and statistics at most twice as far from the fp64 reference as the fp32 reference is."""
    models = [
        TransXNet(dataclasses.replace(config, backend=backend)).to(DEVICE, dtype)
        for backend, dtype in (("reference", torch.float64), ("reference", torch.float32), ("triton", torch.float32))
    ]
    state = from_upstream(filled_state(models[1]))
    found: list[dict[str, Tensor]] = []
    for model in models:
        model.load_state_dict(state)
        for module in model.modules():
            if isinstance(module, ScaledResidual):
                module.drop_path = GivenMask()
        x = images(batch, size).to(DEVICE, next(model.parameters()).dtype)
        out = model.train()(x)
        (out * torch.linspace(-1, 1, out.numel(), device=DEVICE).view_as(out)).sum().backward()
        largest = max(p.grad.norm() for p in model.parameters())
        values = {f"d {key}": p.grad / largest for key, p in model.named_parameters()}
        values |= {key: buffer.double() for key, buffer in model.named_buffers()}
        values["output"] = out.detach()
        found.append({key: value.double() for key, value in values.items()})
    exact, plain, kernels = found
    for key, wanted in exact.items():
        error, allowed = (kernels[key] - wanted).norm(), 2 * (plain[key] - wanted).norm()
        assert error <= allowed + 1e-4 * wanted.norm() + 1e-6, f"{key}: {error:.2e}, twice PyTorch's is {allowed:.2e}"
    assert list(models[1].state_dict()) == list(models[2].state_dict())
    models[1].load_state_dict(models[2].state_dict())
    with torch.no_grad():
        x = images(batch, size).to(DEVICE)[: batch - 1]
        assert distance(models[2].eval()(x), models[1].eval()(x)) < 1e-4


def test_a_tiny_model_trains_as_the_reference():
    _compare(TINY, 36, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [224, 203])
@pytest.mark.parametrize("name", ["transxnet_n", "transxnet_t", "transxnet_s", "transxnet_b"])
def test_every_variant_trains_as_the_reference(name: str, size: int):
    _compare(transxnet.config_for(name), size, 4)
