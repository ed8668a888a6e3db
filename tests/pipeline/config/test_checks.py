"""Invalid configurations are refused before a job is queued."""

from dataclasses import replace

import pytest

from pipeline.config.checks import RANGES, check, micro_batch_candidates, with_micro_batch
from pipeline.config.schema import AugmentConfig, ConfigError, MixConfig, OptimizerConfig, TrainConfig
from pipeline.config.serialise import digest, flatten, from_dict, to_dict


@pytest.mark.parametrize(
    ("changes", "world_size", "words"),
    [
        ({"global_batch_size": 1000, "micro_batch_size": 32}, 32, ["1000", "32", "world_size 32", "would fit"]),
        ({"global_batch_size": 3}, 4, ["micro_batch_size 1", "needs two", "--train.global-batch-size 8 would fit"]),
        ({"micro_batch_size": 0}, 1, ["micro_batch_size 0"]),
        ({"global_batch_size": 0}, 1, ["global_batch_size 0"]),
        ({"steps": 0}, 1, ["steps 0"]),
        ({"ema_decay": 1.0}, 1, ["ema_decay 1.0 must be in [0, 1)"]),
        ({"epochs": float("inf")}, 1, ["epochs inf must be greater than 0"]),
        ({"optimizer": OptimizerConfig(betas=(0.9, 1.0))}, 1, ["optimizer.betas 0.9 1.0 must be in [0, 1)"]),
        ({"augment": AugmentConfig(crop_scale=(1.0, 0.1))}, 1, ["augment.crop_scale 1.0 0.1 must begin with"]),
        (
            {"global_batch_size": 8},
            8,
            ["micro_batch_size 1: the norm in IDConv", "--train.global-batch-size 16 would fit"],
        ),
        ({"micro_batch_size": 1, "mix": MixConfig(mixup=0, cutmix=0)}, 1, ["--train.micro-batch-size 2 would fit"]),
        ({"global_batch_size": 131}, 1, ["micro_batch_size 1", "--train.global-batch-size 130 or 132 would fit"]),
        ({"global_batch_size": 12}, 4, ["mixup", "micro_batch_size is 3"]),
        ({"global_batch_size": 12, "micro_batch_size": "auto"}, 4, ["mixup", "micro_batch_size is 3"]),
        ({"global_batch_size": 9, "micro_batch_size": "auto"}, 2, ["is not divisible", "--train.global-batch-size"]),
        ({"micro_batch_size": "auto", "cuda_graphs": True, "zero_stage": 3}, 1, ["cuda_graphs", "zero_stage 3"]),
        ({"cuda_graphs": True, "zero_stage": 3}, 1, ["cuda_graphs", "zero_stage 3"]),
        ({"cuda_graphs": True, "compile": True}, 1, ["cuda_graphs", "compile"]),
        ({"cuda_graphs": True, "gradient_checkpointing": True}, 1, ["cuda_graphs", "gradient_checkpointing"]),
    ],
)
def test_contradictions_are_refused_with_the_numbers(changes: dict, world_size: int, words: list[str]):
    with pytest.raises(ConfigError) as caught:
        check(replace(TrainConfig(), **changes), world_size)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("changes", "world_size", "candidates"),
    [
        ({}, 8, [2, 4, 8, 16, 32, 64, 128]),
        ({"global_batch_size": 300}, 2, [2, 6, 10, 30, 50]),
        ({"global_batch_size": 300, "mix": MixConfig(mixup=0, cutmix=0)}, 10, [2, 3, 5, 6, 10, 15, 30]),
    ],
)
def test_a_micro_batch_is_found_among_those_that_are_allowed(changes: dict, world_size: int, candidates: list[int]):
    config = check(replace(TrainConfig(micro_batch_size="auto"), **changes), world_size)
    assert config.micro_batch_size == "auto"
    assert micro_batch_candidates(config, world_size) == candidates
    assert with_micro_batch(config, world_size).micro_batch_size == candidates[-1]
    assert with_micro_batch(config, world_size, 2).micro_batch_size == 2
    assert from_dict(to_dict(config)) == config
    assert digest(config) == digest(replace(config, micro_batch_size=None))


def test_every_number_has_a_range():
    numbers = {
        name
        for name, value in flatten(to_dict(TrainConfig(steps=1, micro_batch_size=1, eval_every_steps=1))).items()
        if not isinstance(value, bool | str | None)
    }
    optional = {"model.drop_path_rate", "optimizer.clip_grad_norm", "schedule.warmup_steps"}
    # The ZeRO stage is checked against its list of values.
    assert {name for _, _, names in RANGES for name in names} == (numbers | optional) - {"zero_stage"}
