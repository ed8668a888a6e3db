"""What a network looks at, compared with the network's own outputs."""

import pytest
import torch
from torch.nn import functional as F

from tests.support.networks import small_network
from transxnet import dense
from transxnet.attention import attention
from transxnet.inspection import (
    attention_of_position,
    backbone_of,
    dynamic_kernels,
    effective_receptive_fields,
    grad_cam,
)


@pytest.fixture(scope="module")
def network():
    return small_network(5, 64).eval()


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def last_mixers(network):
    return [stage.blocks[-1].token_mixer for stage in network.stages]


def test_the_kernels_are_those_that_the_network_convolves_with(network, images):
    seen = []
    handles = [
        mixer.local.register_forward_hook(lambda module, given, out: seen.append((module, given[0], out)))
        for mixer in last_mixers(network)
    ]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    for kernels, (module, given, out) in zip(dynamic_kernels(network, images), seen, strict=True):
        biases = module.kernels(given)[1]
        for n in range(len(images)):
            by_hand = F.conv2d(given[n : n + 1], kernels[n].unsqueeze(1), biases[n], padding=3, groups=given.shape[1])
            torch.testing.assert_close(by_hand[0], out[n], rtol=1e-3, atol=1e-5)
    assert not torch.equal(kernels[0], kernels[1])


@pytest.mark.parametrize("size", [64, 96])
def test_the_attention_gives_the_output_of_its_position(network, size):
    """Also for another size than that of the bias tables."""
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    seen = []
    handles = [
        mixer.register_forward_pre_hook(lambda module, given: seen.append((module, given)))
        for mixer in last_mixers(network)
    ]
    with torch.no_grad():
        network(images)
    for handle in handles:
        handle.remove()
    found = attention_of_position(network, images, (0.3, 0.8))
    for shares, (mixer, (_, attended, bias)) in zip(found, seen, strict=True):
        with torch.no_grad():
            q, kv = mixer.attention.project(attended)
            height, width = q.shape[2:]
            expected = attention(q, kv, bias)[:, :, int(0.8 * height), int(0.3 * width)]
        heads = bias.shape[1]
        values = kv.flatten(2).unflatten(1, (2, heads, -1))[:, 1]
        by_hand = torch.einsum("nhm,nhdm->nhd", shares.flatten(2), values).flatten(1)
        torch.testing.assert_close(by_hand, expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(shares.sum((2, 3)), torch.ones(2, heads))


def test_grad_cam_weights_the_map_by_the_mean_gradient_of_the_class(network, images):
    network.zero_grad()
    maps = network.stage_maps(images)
    maps[2].retain_grad()
    network.classifier(maps[3])[range(3), [4, 0, 2]].sum().backward()
    weighted = F.relu((maps[2].grad.mean((2, 3), keepdim=True) * maps[2]).sum(1)).detach()
    network.zero_grad()
    shown = grad_cam(network, images, [4, 0, 2], stage=2)
    torch.testing.assert_close(shown, weighted / weighted.amax((1, 2), keepdim=True))
    assert all(parameter.grad is None for parameter in network.parameters())


def test_receptive_fields_are_sums_over_images_of_what_moves_the_centre(network, images):
    fields = effective_receptive_fields(network, images)
    assert fields.shape == (4, 64, 64)
    apart = [effective_receptive_fields(network, image[None]) for image in images]
    torch.testing.assert_close(fields, torch.stack(apart).sum(0), rtol=1e-3, atol=1e-9)
    # A pixel that moves the centre of the first map in the positive direction, by finite differences.
    one = images[:1].double()
    exact = small_network(5, 64).double().eval()
    field = effective_receptive_fields(exact, one)[0]
    y, x = divmod(int(field.argmax()), 64)

    def centre(change: float) -> float:
        moved = one.clone()
        moved[0, :, y, x] += change * gradient_sign
        with torch.no_grad():
            return float(F.relu(exact.stage_maps(moved)[0][:, :, 8, 8]).sum())

    gradient_sign = torch.ones(3, dtype=torch.float64)
    single = []
    for channel in range(3):
        gradient_sign = torch.zeros(3, dtype=torch.float64)
        gradient_sign[channel] = 1
        single.append((centre(1e-6) - centre(-1e-6)) / 2e-6)
    assert sum(max(0.0, value) for value in single) == pytest.approx(float(field[y, x]), rel=1e-4)


def test_a_dense_network_has_a_backbone_and_another_has_none():
    network = dense.semantic_fpn("n", 3, image_size=32)
    assert backbone_of(network).config.name == "transxnet_n"
    with pytest.raises(ValueError, match="Linear has no TransXNet in it"):
        backbone_of(torch.nn.Linear(2, 2))
