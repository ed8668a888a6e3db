"""A config survives its file, and only fields that change the result are compared."""

from dataclasses import replace

import pytest

from pipeline.config.checks import check
from pipeline.config.schema import MixConfig, TrainConfig
from pipeline.config.serialise import difference, digest, from_dict, to_dict
from pipeline.recipes import RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_valid_and_survive_serialisation(recipe: str):
    config = check(RECIPES[recipe].train(), 2)
    assert from_dict(to_dict(config)) == config
    assert RECIPES[recipe].train.__doc__
    assert "python -m pipeline.launch" in RECIPES[recipe].train.__doc__


def test_a_run_from_before_tasks_had_names_is_the_same_training():
    fields = to_dict(TrainConfig())
    for name in ("task", "segmentation"):
        del fields[name]
    del fields["optimizer"]["decay"]
    for name in ("warmup_steps", "warmup_ratio"):
        del fields["schedule"][name]
    assert from_dict(fields) == TrainConfig()
    assert difference(from_dict(fields), TrainConfig()) == []


def test_only_what_changes_the_result_is_compared():
    config = TrainConfig()
    free = replace(config, zero_stage=3, save_every_steps=7, data=replace(config.data, workers=9))
    assert difference(config, free) == []
    assert digest(config) == digest(free)
    other = replace(config, seed=5, mix=MixConfig(mixup=0.1))
    assert difference(config, other) == ["seed: 0 -> 5", "mix.mixup: 0.8 -> 0.1"]
    assert digest(config) != digest(other)
