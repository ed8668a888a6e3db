"""What a launch says of training and validation images that may be the same."""

import dataclasses

import pytest

from pipeline.launch.command import main
from pipeline.launch.data_checks import check_shards
from pipeline.launch.options import LaunchError, parse
from pipeline.launch.plan import build_plan
from pipeline.launch.run import prepare_run
from pipeline.recipes import RECIPES
from sharding.build import BuildOptions, build
from tests.sharding.synthetic import write_class_folders


def pack(source, output, split, **options):
    build(BuildOptions(source=str(source), output=str(output), split=split, name="photos", workers=1, **options))


def training(shards, validation_shards=None):
    train = RECIPES["fine_tune"].train()
    validation = None if validation_shards is None else str(validation_shards)
    data = dataclasses.replace(train.data, shards=str(shards), validation_shards=validation)
    return dataclasses.replace(train, data=data)


@pytest.fixture
def photos(tmp_path):
    return write_class_folders(tmp_path / "photos", {"cats": 6, "dogs": 10})


def test_parts_that_were_divided_by_other_values_are_refused(photos, tmp_path):
    pack(photos, tmp_path / "shards", "train", hold_out=0.2)
    for options, words in (
        ({"hold_out": 0.5}, "with --hold-out 0.5 --seed 0"),
        ({"hold_out": 0.2, "seed": 3}, "with --hold-out 0.2 --seed 3"),
        ({}, "without --hold-out"),
    ):
        other = tmp_path / f"other-{len(list(tmp_path.iterdir()))}"
        pack(photos, other, "validation", **options)
        with pytest.raises(
            LaunchError,
            match=rf"train was packed with --hold-out 0.2 --seed 0 and validation was packed {words}, so the same .* "
            r"--output OTHER --name photos --hold-out 0.2 --seed 0$",
        ):
            check_shards(training(tmp_path / "shards", other))
    with pytest.raises(
        LaunchError, match=r"--name photos --split validation --hold-out 0.2 --seed 0 \(IMAGES: .*validation-split$"
    ):
        check_shards(training(tmp_path / "shards"))
    pack(photos, tmp_path / "shards", "validation", hold_out=0.2)
    assert not check_shards(training(tmp_path / "shards")).is_its_own_validation


def test_a_training_that_validates_on_its_own_images_or_begins_with_random_weights_is_told(photos, tmp_path, capsys):
    for split in ("train", "validation"):
        pack(photos, tmp_path / "shards", split)
    assert check_shards(training(tmp_path / "shards")).is_its_own_validation
    flags = ["--recipe", "fine_tune", "--cluster", "local", "--dry-run", "--run-dir", str(tmp_path / "run")]
    flags += ["--train.precision", "fp32", "--train.data.shards", str(tmp_path / "shards")]
    assert main(flags) == 0
    warnings = capsys.readouterr().err
    assert "both splits hold the same images, so the scores say nothing of new images: pack them with python -m" in (
        warnings
    )
    assert "fine_tune is meant to start from trained weights" in warnings
    assert "--train.initialise-from" in warnings


def test_a_sweep_tells_what_is_so_of_all_its_runs_once(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "validation"):
        pack(photos, tmp_path / "shards", split)
    flags = ["--recipe", "fine_tune", "--cluster", "local", "--run-dir", "sweep", "--sweep", "train.seed=1,2"]
    plan = build_plan(parse([*flags, "--train.precision", "fp32", "--train.data.shards", str(tmp_path / "shards")]))
    told = set()
    for run in plan.runs:
        prepare_run(plan, run, told)
    assert len(plan.runs) == 2
    assert capsys.readouterr().err.count("both splits hold the same images") == 1
