"""Paths in a configuration are absolute before it is written."""

from pathlib import Path

import pytest

from pipeline.config.paths import PATH_FIELDS, with_absolute_paths
from pipeline.config.schema import DataConfig, TrainConfig
from pipeline.config.serialise import flatten, to_dict
from pipeline.launch.options import parse
from pipeline.launch.plan import build_plan


def test_every_path_of_a_launch_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    flags = ["--recipe", "demo", "--cluster", "debug", "--run-dir", "~/runs/a", "--python", "../venv/bin/python"]
    flags += ["--train.data.shards", "data/../shards", "--train.data.validation-shards=~/validation"]
    flags += ["--train.data.cache-dir", "cache", "--train.initialise-from=~/weights.safetensors"]
    flags += ["--train.distill", "teacher.pth", "--train.data.stage", "disk/../stage"]
    plan = build_plan(parse(flags))
    (run,) = plan.runs
    assert str(plan.run_dir) == str(run.run_dir) == "/home/me/runs/a"
    assert plan.resources.python == f"{tmp_path.parent}/venv/bin/python"
    fields = flatten(to_dict(run.config))
    assert {name: fields[name] for name in PATH_FIELDS} == {
        "data.shards": f"{tmp_path}/shards",
        "data.validation_shards": "/home/me/validation",
        "data.cache_dir": f"{tmp_path}/cache",
        "data.stage": f"{tmp_path}/stage",
        "initialise_from": "/home/me/weights.safetensors",
        "distill": f"{tmp_path}/teacher.pth",
    }
    swept = build_plan(parse(["--recipe", "demo", "--cluster", "debug", "--sweep", "train.data.shards=first,~/second"]))
    assert [run.config.data.shards for run in swept.runs] == [f"{tmp_path}/first", "/home/me/second"]


def test_an_address_is_no_path_and_a_variable_is_left_to_the_node():
    data = DataConfig(shards="s3://bucket/a/../b", stage="$TMPDIR/shards")
    config = TrainConfig(initialise_from="models:/m@champion", data=data)
    assert with_absolute_paths(config) == config
