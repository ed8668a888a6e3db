"""What a launch, the status and `--sync` do with mirrors."""

import dataclasses
import json
import shutil
import sys
import time
from pathlib import Path

import pytest

from pipeline.config.schema import TrainConfig
from pipeline.launch.command import main
from pipeline.launch.options import LaunchError, parse
from pipeline.mirror.layout import owners
from pipeline.mirror.place import MirrorError, Place, child_location
from pipeline.run import directory as run_directory
from pipeline.run.files import CONFIG_NAME
from pipeline.run.micro_batch import FoundMicroBatch, read_micro_batch, write_micro_batch
from pipeline.run.mirror_files import MirrorProgress, describe_mirror, read_progress, write_progress
from pipeline.status.sync import sync_mirror, unsent_runs
from tests.support.mirrored_runs import bring, copy_all, mirror, new_run, publish
from tests.support.small_shards import config as small_config
from tests.support.small_shards import pack
from tests.support.tracking_runs import config_json


@pytest.fixture
def mirrored(tmp_path: Path) -> tuple[Path, str]:
    """A run of the recipe `small` with one checkpoint, and its mirror."""
    run_dir, location = new_run(tmp_path / "run"), str(tmp_path / "mirror")
    config = json.loads((run_dir / CONFIG_NAME).read_text())
    (run_dir / CONFIG_NAME).write_text(json.dumps({**config, "recipe": "small"}))
    publish(run_dir, 100)
    copy_all(mirror(run_dir, location))
    return run_dir, location


def test_flags_that_are_not_given_are_those_of_the_run_in_the_mirror(mirrored: tuple[Path, str]):
    run_dir, location = mirrored
    options = parse(["--from", location, "--train.data.shards", "/elsewhere"])
    began_with = run_directory.read_config(run_dir).train
    data = dataclasses.replace(began_with.data, shards="/elsewhere")
    assert options.train == dataclasses.replace(began_with, data=data)
    assert options.recipe == "small"
    with pytest.raises(LaunchError, match="--recipe base: the run in the mirror is of small"):
        parse(["--recipe", "base", f"--from={location}"])
    with pytest.raises(LaunchError, match="--sweep"):
        parse(["--from", location, "--sweep", "train.seed=0,1"])


def test_a_run_that_owns_the_mirror_needs_no_answer_from_it(mirrored: tuple[Path, str]):
    run_dir, location = mirrored
    shutil.rmtree(location)
    options = parse(["--from", location, "--run-dir", str(run_dir), "--mirror", location])
    assert (options.recipe, options.train, options.mirror) == ("small", run_directory.read_config(run_dir).train, None)
    with pytest.raises(LaunchError, match="leave --mirror out"):
        parse(["--from", location, "--run-dir", str(run_dir), "--mirror", "/another"])
    with pytest.raises(LaunchError, match="--take-over belongs to --from"):
        parse(["--take-over"])


def test_a_launch_that_is_refused_takes_nothing_over(mirrored: tuple[Path, str], capsys):
    _, location = mirrored
    before, there = owners(Place(location)), Path(location).with_name("there")
    assert main(["--from", location, "--run-dir", str(there), "--train.data.shards", "/nothing/is/here"]) == 2
    assert "/nothing/is/here" in capsys.readouterr().err
    assert owners(Place(location)) == before
    assert not there.exists()


def test_flags_of_another_training_are_refused_before_anything_is_taken_over(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pack(tmp_path / "shards", (48,))
    pack(tmp_path / "shards", (5,), split="validation")
    run_dir, location, there = new_run(tmp_path / "run"), str(tmp_path / "mirror"), tmp_path / "there"
    began_with = small_config(tmp_path / "shards", tmp_path / "cache", steps=900)
    config_json(run_dir, dataclasses.replace(began_with, initialise_from="/only/at/the/first/place.pth"), None)
    publish(run_dir, 100)
    copy_all(mirror(run_dir, location))
    before = owners(Place(location))
    assert main(["--from", location, "--run-dir", str(there), "--cluster", "local", "--train.seed", "7"]) == 2
    said = capsys.readouterr().err
    assert "holds another training" in said
    assert "seed: 0 -> 7" in said
    # The weights that it began with are not needed any more.
    assert main(["--from", location, "--run-dir", str(there), "--cluster", "local", "--dry-run"]) == 0
    assert "would be refused" not in capsys.readouterr().err
    assert owners(Place(location)) == before
    assert not there.exists()


def test_the_micro_batch_that_was_found_comes_along(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pack(tmp_path / "shards", (48,))
    pack(tmp_path / "shards", (5,), split="validation")
    run_dir, location, there = new_run(tmp_path / "run"), str(tmp_path / "mirror"), tmp_path / "there"
    training = small_config(tmp_path / "shards", tmp_path / "cache", steps=900, micro_batch_size="auto")
    config_json(run_dir, training, None)
    write_micro_batch(run_dir, FoundMicroBatch(micro_batch_size=4, world_size=2))
    publish(run_dir, 100)
    copy_all(mirror(run_dir, location))
    before = owners(Place(location))
    launch = ["--from", location, "--run-dir", str(there), "--cluster", "local", "--tasks-per-node"]
    for dry_run in ([], ["--dry-run"]):
        assert main([*launch, "4", *dry_run]) == 2
        assert "global_batch_size 24 is not divisible by micro_batch_size 4 x world_size 4" in capsys.readouterr().err
    assert main([*launch, "2", "--dry-run"]) == 0
    assert "# micro-batch: 4 (auto without GPUs), kept for the run" in capsys.readouterr().out
    assert owners(Place(location)) == before
    assert not there.exists()
    bring(location, there)
    assert read_micro_batch(there) == read_micro_batch(run_dir)


def test_a_mirror_without_a_run_is_refused_in_one_line(tmp_path: Path, capsys):
    assert main(["--from", str(tmp_path / "nothing"), "--run-dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "nothing is there" in said
    with pytest.raises(MirrorError, match="nothing is there"):
        parse(["--from", str(tmp_path / "nothing")])


def test_addresses_are_kept_without_their_secrets(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["launch", "--mirror", "s3://key:hunter2@bucket/run", "--from=s3://k:hunter2@b/r"])
    run_directory.prepare(tmp_path / "run", TrainConfig(), {})
    assert "hunter2" not in (tmp_path / "run" / CONFIG_NAME).read_text()
    assert child_location("s3://bucket/runs/?region=x", "lr=1") == "s3://bucket/runs/lr=1?region=x"
    assert child_location("/mirror", "lr=1") == "/mirror/lr=1"


def test_the_status_shows_how_far_the_mirror_is_and_sync_completes_it(mirrored: tuple[Path, str]):
    run_dir, location = mirrored
    write_progress(run_dir, MirrorProgress(step=100, time=time.time(), is_complete=True))
    assert describe_mirror(run_dir, 100, 0.0, is_running=True) == f"step 100 in {location}"
    (run_dir / "mirror_progress.json").write_text('{"step": "many", "time": 1e300, "problem": 7}')
    assert read_progress(run_dir) == MirrorProgress()
    publish(run_dir, 200)
    behind = MirrorProgress(step=100, time=1.0, behind_since=10.0, problem="no space left")
    write_progress(run_dir, behind)
    line = describe_mirror(run_dir, 200, 70.0, is_running=True)
    assert line == f"step 100, 100 steps behind in {location}; no space left for 1:00"
    assert run_dir in unsent_runs([run_dir])
    said = sync_mirror(run_dir)
    assert said is not None
    assert "step 200" in said
    assert read_progress(run_dir) == dataclasses.replace(
        MirrorProgress(step=200, is_complete=True), time=read_progress(run_dir).time
    )
    assert describe_mirror(new_run(run_dir.parent / "other"), 0, 0.0, is_running=True) is None
