"""timm's names and interface, checked as timm documents them for its own models."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

import transxnet
import transxnet.timm as registered
from tests.transxnet.fixtures import images

NAMES = ("transxnet_n", "transxnet_t", "transxnet_s", "transxnet_b")
SIDE = 64


def create(**settings) -> torch.nn.Module:
    return timm.create_model("transxnet_n", **({"img_size": SIDE} | settings)).eval()


def test_the_names_are_timms():
    assert isinstance(create(), registered.TransXNet)
    assert set(NAMES) <= set(timm.list_models("transxnet*"))
    assert timm.list_pretrained("transxnet*") == ["transxnet_b.in1k", "transxnet_s.in1k", "transxnet_t.in1k"]


@pytest.mark.parametrize(
    "name", ["transxnet_t", *(pytest.param(f"transxnet_{v}", marks=pytest.mark.thorough) for v in "sb")]
)
def test_default_configurations_describe_the_published_networks(name: str):
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        ours = transxnet.build(name)
    assert [(k, v.shape) for k, v in model.state_dict().items()] == [(k, v.shape) for k, v in ours.state_dict().items()]
    cfg = model.default_cfg
    assert cfg["url"].endswith(f"/transx-{name[-1]}.pth.tar")
    assert cfg["crop_pct"] == {"t": 0.9, "s": 0.9, "b": 0.95}[name[-1]]
    assert {f"{cfg['first_conv']}.weight", f"{cfg['classifier']}.weight", f"{cfg['classifier']}.bias"} <= set(
        model.state_dict()
    )
    assert cfg["input_size"] == (3, 224, 224)


def test_forward_features_and_head_are_the_packages_logits():
    torch.manual_seed(0)
    ours = transxnet.transxnet_n(num_classes=5, image_size=SIDE).eval()
    model = create(num_classes=5)
    model.load_state_dict(ours.state_dict())
    x = images(2, SIDE)
    with torch.no_grad():
        last = model.forward_features(x)
        assert last.shape == (2, model.num_features, 2, 2)
        assert torch.equal(model.forward_head(last), model(x))
        assert torch.equal(model(x), ours(x))
        assert model.forward_head(last, pre_logits=True).shape == (2, model.head_hidden_size)


def test_the_classifier_is_reset_and_left_out():
    model, x = create(num_classes=5), images(2, SIDE)
    with torch.no_grad():
        assert model.get_classifier() is model.classifier.linear
        model.reset_classifier(7)
        assert model(x).shape == (2, 7)
        assert model.num_classes == 7
        model.reset_classifier(0)
        assert model(x).shape == (2, model.num_features)
        model.reset_classifier(0, "")
        assert model(x).shape == (2, model.num_features, 2, 2)
        for pool in ("avg", "max", "avgmax"):
            assert create(num_classes=3, global_pool=pool)(x).shape == (2, 3)
        assert create(num_classes=0, global_pool="")(x).shape == (2, model.num_features, 2, 2)
    with pytest.raises(ValueError, match=r"global_pool is 'mean'"):
        create(global_pool="mean")


@pytest.mark.parametrize("channels", [1, 5])
def test_images_may_have_other_channels(channels: int):
    model = create(in_chans=channels, num_classes=2)
    assert model(torch.randn(2, channels, SIDE, SIDE)).shape == (2, 2)
    with pytest.raises(ValueError, match=rf"takes \[N, {channels}, H, W\]"):
        model(torch.randn(2, 3, SIDE, SIDE))


@pytest.mark.parametrize("indices", [None, (0, 1, 2, 3), (1, 3), (0, 2), (-2, -1)])
@pytest.mark.parametrize("size", [(64, 64), (50, 70)])
def test_features_are_the_stage_maps(indices, size):
    torch.manual_seed(0)
    whole = create()
    kept = {} if indices is None else {"out_indices": indices}
    features = create(features_only=True, **kept)
    names = {f"model.{name}" for name in whole.state_dict()}
    features.load_state_dict({f"model.{k}": v for k, v in whole.state_dict().items() if f"model.{k}" in names}, False)
    x = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps, expected = features(x), whole.stage_maps(x)
    taken = range(4) if indices is None else indices
    assert len(maps) == len(list(taken))
    for found, index, channels, reduction in zip(
        maps, taken, features.feature_info.channels(), features.feature_info.reduction(), strict=True
    ):
        assert torch.equal(found, expected[index])
        assert found.shape[1] == channels
        assert found.shape[2:] == tuple(-(-side // reduction) for side in size)


def test_intermediates_are_given_beside_the_last_map():
    model, x = create(), images(2, SIDE)
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert torch.equal(model.forward_head(last), model(x))
        assert [m.shape[1] for m in maps] == [i["num_chs"] for i in model.feature_info]
        [normed] = model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)
        assert torch.equal(normed, model.classifier.norm(last))


def test_published_weights_fit_other_channels_classes_and_sizes(tmp_path):
    torch.manual_seed(0)
    ours = transxnet.transxnet_n(num_classes=1000, image_size=32).eval()
    path = tmp_path / "transx-n.pth.tar"
    torch.save({"state_dict": transxnet.to_upstream(ours.state_dict())}, path)
    pretrained = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    x = images(2, 32)
    with torch.no_grad():
        assert torch.equal(create(img_size=32, **pretrained)(x), ours(x))
        gray = create(img_size=SIDE, in_chans=1, num_classes=3, **pretrained)
        assert torch.equal(gray.patch_embed.conv.weight, ours.patch_embed.conv.weight.sum(1, keepdim=True))
        tables = [m.stages[0].position_bias.table for m in (gray, ours)]
        assert tables[0].shape != tables[1].shape
        features = create(img_size=32, features_only=True, out_indices=(3,), **pretrained)
        assert torch.equal(features(x)[0], ours.stage_maps(x)[-1])


def test_layers_for_layer_wise_rates_are_stem_blocks_and_classifier():
    model = create(num_classes=2)
    groups = param_groups_layer_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.5)
    by_id = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    scales = {name: by_id[id(parameter)] for name, parameter in model.named_parameters()}
    blocks = sum(model.config.depths)
    assert scales["classifier.linear.weight"] == 1.0
    assert scales["stages.0.blocks.0.norm1.weight"] == scales["stages.0.position_bias.table"] == 0.5**blocks
    assert scales["patch_embed.conv.weight"] == 0.5 ** (blocks + 1)


def test_gradient_checkpointing_changes_no_gradient_and_is_undone():
    torch.manual_seed(0)
    model, x = create(num_classes=2).train(), images(4, SIDE)
    gradients = []
    for enable in (False, True, False):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for other in gradients[1:] for a, b in zip(gradients[0], other, strict=True))
    assert not any("forward" in vars(module) for module in model.modules())


def test_an_image_size_that_is_no_square_is_refused():
    with pytest.raises(ValueError, match=r"img_size is \(64, 96\)"):
        create(img_size=(64, 96))
