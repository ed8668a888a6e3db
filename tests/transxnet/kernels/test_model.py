"""The whole model on the kernels against the reference backend, with the same weights."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import transxnet
from tests.transxnet.fixtures import distance, filled_state, images
from tests.transxnet.kernels.compare import DEVICE
from transxnet import TransXNet, TransXNetConfig, from_upstream
from transxnet.layers import ScaledResidual

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


class DropSecondSample(nn.Module):
    """Stochastic depth that drops the second sample in every branch."""

    def forward(self, x: Tensor) -> Tensor:
        factor = x.new_full((x.shape[0], 1, 1, 1), 1.25)
        factor[1] = 0
        return factor


def _compare(config: TransXNetConfig, size: int, batch: int) -> None:
    """Compare output, gradients and statistics: at most twice the error of the fp32 reference, against fp64."""
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
                module.drop_path = DropSecondSample()
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
        assert error <= allowed + 1e-4 * wanted.norm() + 1e-6, (
            f"{key}: {error:.2e}, twice PyTorch's error is {allowed:.2e}"
        )
    assert list(models[1].state_dict()) == list(models[2].state_dict())
    models[1].load_state_dict(models[2].state_dict())
    with torch.no_grad():
        x = images(batch, size).to(DEVICE)[: batch - 1]
        assert distance(models[2].eval()(x), models[1].eval()(x)) < 1e-4


def test_a_tiny_model_matches_the_reference_in_training():
    _compare(TINY, 36, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [224, 203])
@pytest.mark.parametrize("name", ["transxnet_n", "transxnet_t", "transxnet_s", "transxnet_b"])
def test_every_variant_matches_the_reference_in_training(name: str, size: int):
    _compare(transxnet.config_for(name), size, 4)
