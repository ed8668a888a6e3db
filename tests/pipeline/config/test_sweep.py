"""Which trainings a sweep consists of, and which sweeps are refused."""

import pytest

from pipeline.config.schema import ConfigError, TrainConfig
from pipeline.config.sweep import build_members
from pipeline.launch.options import parse
from pipeline.recipes.digits import demo


def test_each_combination_of_a_sweep_is_a_training_named_after_its_values():
    options = parse(["--recipe", "demo", "--sweep", "train.optimizer.lr=1e-3,2e-3", "--sweep", "train.zero-stage=0,1"])
    members = build_members(options.sweep, options.train)
    assert [member.name for member in members] == [
        "lr=0.001,zero_stage=0",
        "lr=0.001,zero_stage=1",
        "lr=0.002,zero_stage=0",
        "lr=0.002,zero_stage=1",
    ]
    assert [(m.config.optimizer.lr, m.config.zero_stage) for m in members] == [
        (1e-3, 0),
        (1e-3, 1),
        (2e-3, 0),
        (2e-3, 1),
    ]
    assert members[0].config.model == demo().model
    named = build_members(["train.optimizer.clip_grad_norm=none,1"], options.train)
    assert [member.config.optimizer.clip_grad_norm for member in named] == [None, 1.0]
    micro = build_members(["train.micro-batch-size=auto,16,none"], options.train)
    assert [member.config.micro_batch_size for member in micro] == ["auto", 16, None]


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        (["train.optimizer.lrr=1"], "there is no field train.optimizer.lrr; did you mean train.optimizer.lr?"),
        (["nodes=1,2"], "there is no field nodes; sweep a field of the training"),
        (["train.seed"], "write it as train.seed=A,B"),
        (["train.seed=1,"], "write it as train.seed=A,B"),
        (["train.seed=1,x"], "x is no int"),
        (["train.micro-batch-size=all"], "all is no int, and all is not one of auto"),
        (["train.optimizer.lr=1e-3,0.001"], "0.001 is given twice"),
        (["train.seed=1", "train.seed=2"], "train.seed is given twice"),
        (["train.precision=bf16,bf15"], "bf15 is not one of fp32, bf16, fp16"),
        (["train.augment.crop-scale=0.1,1"], "a field of several values cannot be swept"),
    ],
)
def test_an_invalid_sweep_is_one_line(sweep: list[str], words: str):
    with pytest.raises(ConfigError) as error:
        build_members(sweep, TrainConfig())
    assert words in str(error.value)
    assert "\n" not in str(error.value)
