"""Parameter groups: layer decay equals timm's, and each parameter is in one group."""

import pytest
from timm.optim._param_groups import param_groups_layer_decay

import transxnet
from pipeline.config.checks import check
from pipeline.config.schema import ConfigError, OptimizerConfig, TrainConfig
from pipeline.engine.optimizer import parameter_groups


def test_layer_decay_equals_timms():
    network = transxnet.build("transxnet_t", num_classes=5)
    options = OptimizerConfig(layer_decay=0.7, weight_decay=0.05)
    ours = {
        name: (group.lr_scale, group.weight_decay)
        for group in parameter_groups(network, options).values()
        for name in group.names
    }
    # timm describes its own networks of stages (ConvNeXt, Swin) in this form.
    blocks = [(r"^stages\.(\d+)\.(?:downsample|position_bias)", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
    network.group_matcher = lambda coarse: {"stem": r"^patch_embed", "blocks": blocks}
    groups = param_groups_layer_decay(network, weight_decay=0.05, layer_decay=0.7)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    expected = {names[id(p)]: group for group in groups for p in group["params"]}
    assert ours.keys() == expected.keys()
    for name, (scale, decay) in ours.items():
        assert scale == pytest.approx(expected[name]["lr_scale"]), name
        assert decay == (0.0 if name.endswith(".bias") else expected[name]["weight_decay"]), name
    assert len({scale for scale, _ in ours.values()}) == sum(network.config.depths) + 2


def test_without_layer_decay_there_are_two_groups_at_the_full_rate():
    groups = parameter_groups(transxnet.build("transxnet_n", num_classes=5), OptimizerConfig())
    assert [(name, group.lr_scale, group.weight_decay) for name, group in groups.items()] == [
        ("decay", 1.0, 0.05),
        ("plain", 1.0, 0.0),
    ]


def test_a_layer_decay_out_of_range_is_refused():
    with pytest.raises(ConfigError, match=r"layer_decay 1\.5 must be in \(0, 1\]"):
        check(TrainConfig(optimizer=OptimizerConfig(layer_decay=1.5)), 1)
