"""The model against the published form, at image sizes that are multiples of its strides and at others."""

import dataclasses

import pytest
import torch

import transxnet
from tests.transxnet import straightforward
from tests.transxnet.fixtures import distance, filled_state, images
from transxnet import TransXNetConfig, from_upstream, to_upstream
from transxnet.layers import Branch


@pytest.mark.parametrize(
    ("name", "height", "width"),
    [
        ("transxnet_n", 32, 32),
        ("transxnet_n", 61, 37),
        pytest.param("transxnet_t", 203, 250, marks=pytest.mark.thorough),
        pytest.param("transxnet_t", 160, 160, marks=pytest.mark.slow),
    ],
)
def test_logits_and_maps_equal_the_published_form_at_any_size(name: str, height: int, width: int):
    model = transxnet.build(name).eval()
    state = filled_state(model)
    model.load_state_dict(from_upstream(state))
    x = images(2, height, width)
    with torch.no_grad():
        maps, logits = model.forward_features(x), model(x)
        expected = straightforward.forward_features(state, model.config, x)
        assert [tuple(m.shape) for m in maps] == [tuple(m.shape) for m in expected]
        assert max(map(distance, maps, expected)) < 1e-5
        assert distance(logits, straightforward.forward(state, model.config, x)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("size", [160, 193, 224, 256, 300, 384])
@pytest.mark.parametrize("name", ["transxnet_t", "transxnet_s", "transxnet_b"])
def test_every_variant_equals_the_published_form(name: str, size: int):
    test_logits_and_maps_equal_the_published_form_at_any_size(name, size, size)


@pytest.mark.parametrize(
    ("name", "depths", "size"),
    [
        ("transxnet_n", (1, 1, 2, 1), 45),
        pytest.param("transxnet_t", (1, 1, 1, 1), 72, marks=pytest.mark.thorough),
        pytest.param("transxnet_t", (3, 3, 9, 3), 72, marks=pytest.mark.slow),
    ],
)
def test_training_equals_the_published_form(name: str, depths: tuple[int, ...], size: int):
    model = transxnet.build(name, depths=depths, num_classes=13, drop_path_rate=0.0).train()
    state = {key: value.double() for key, value in filled_state(model).items()}
    state = {key: value.long() if "num_batches" in key else value for key, value in state.items()}
    model.double().load_state_dict(from_upstream(state))
    x = images(3, size).double()
    for value in straightforward.trainable(state).values():
        value.requires_grad_()
    logits, expected = model(x), straightforward.forward(state, model.config, x, training=True)
    weight = torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits)
    (logits * weight).sum().backward()
    (expected * weight).sum().backward()
    assert distance(logits, expected) < 1e-12
    gradients = to_upstream({**model.state_dict(), **{key: p.grad for key, p in model.named_parameters()}})
    scale = max(value.grad.norm() for value in straightforward.trainable(state).values())
    for key, value in straightforward.trainable(state).items():
        assert (gradients[key] - value.grad).norm() <= 1e-9 * value.grad.norm() + 1e-13 * scale, key
    for key, value in to_upstream(model.state_dict()).items():
        if "running_" in key or "num_batches" in key:
            assert torch.allclose(value, state[key], rtol=1e-10), key


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    model = transxnet.transxnet_n(num_classes=3, image_size=32, drop_path_rate=0.5)
    rates = [block.residual2.drop_path.rate for stage in model.stages for block in stage.blocks]
    assert rates == [0.0, 0.125, 0.25, 0.375, 0.5]
    residual = model.stages[-1].blocks[-1].residual2
    torch.nn.init.ones_(residual.weight)
    torch.manual_seed(0)
    skip, branch = torch.zeros(4000, 192, 1, 1), torch.ones(4000, 192, 1, 1)
    residual.norm.eval()
    out = residual(skip, Branch(branch))
    assert {round(value, 4) for value in out.unique().tolist()} == {0.0, 2.0}
    assert (out == out[:, :1]).all(), "a sample must be dropped as a whole"
    assert 0.9 < out.mean() < 1.1
    assert torch.allclose(residual.eval()(skip, Branch(branch)), branch, rtol=1e-4)


def test_initial_values_are_those_of_upstream():
    torch.manual_seed(0)
    model = transxnet.transxnet_t()
    for key, value in to_upstream(model.state_dict()).items():
        if "layer_scale" in key:
            expected = 1e-5 if key.endswith("weight") else 0.0
            assert (value == expected).all(), key
        elif key.startswith("relative_pos_enc"):
            assert (value == 0).all(), key
        elif value.dim() >= 2:
            assert abs(value.std() - 0.02) < 0.02 * 10 / value.numel() ** 0.5, key
        elif key.endswith(("weight", "running_var")):
            assert (value == 1).all(), key
        else:
            assert (value == 0).all(), key


def test_bf16_autocast_trains_and_keeps_parameters_in_fp32():
    torch.manual_seed(0)
    model = transxnet.transxnet_n(num_classes=4, image_size=32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images(4, 32))
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    loss.backward()
    assert logits.dtype == torch.bfloat16
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters()
    )
    with torch.no_grad():
        assert distance(logits, model.train()(images(4, 32))) < 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"image_size": -32}, "image_size is -32"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
        ({"backend": "cuda"}, "choose one of auto, reference, triton"),
        ({"width": 3}, "transxnet_t has no setting width"),
    ],
)
def test_invalid_settings_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        transxnet.build("transxnet_t", **settings)


def test_unknown_variants_and_images_of_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="transxnet_n, transxnet_t, transxnet_s, transxnet_b"):
        transxnet.build("transxnet_l")
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*\[N, 3, H, W\]"):
        transxnet.transxnet_n(image_size=32)(torch.zeros(3, 32, 32))


def test_config_is_frozen_and_stored_in_the_model():
    model = transxnet.transxnet_n(num_classes=7, image_size=48)
    assert (model.config.name, model.config.num_classes, model.config.image_size) == ("transxnet_n", 7, 48)
    assert TransXNetConfig(**dataclasses.asdict(model.config)) == model.config
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.config.num_classes = 8
