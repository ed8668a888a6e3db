"""A run directory belongs to one training, one user and one attempt at a time."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.schema import TrainConfig
from pipeline.run import directory as run_directory
from pipeline.run.config import read_config
from pipeline.run.directory import RunDirectoryError, prepare


def test_a_run_directory_belongs_to_one_training(tmp_path: Path):
    run = tmp_path / "run"
    run_directory.prepare(run, TrainConfig(), {"resources": {}})
    run_directory.prepare(run, replace(TrainConfig(), zero_stage=2), {})
    assert read_config(run).train.zero_stage == 2
    with pytest.raises(RunDirectoryError, match="seed: 0 -> 1"):
        run_directory.prepare(run, replace(TrainConfig(), seed=1), {})
    assert read_config(run).train.seed == 0
    run_directory.prepare(run, TrainConfig(), {"dataset": {"digest": "a" * 64, "validation_digest": "b" * 64}})
    with pytest.raises(RunDirectoryError, match="validation shards of digest bbbbbbbbbbbb -> cccccccccccc"):
        run_directory.prepare(run, TrainConfig(), {"dataset": {"digest": "a" * 64, "validation_digest": "c" * 64}})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").touch()
    with pytest.raises(RunDirectoryError, match="not empty"):
        run_directory.prepare(tmp_path / "full", TrainConfig(), {})
    held = run_directory.lock(run)
    with pytest.raises(RunDirectoryError, match="another attempt"):
        run_directory.lock(run)
    with pytest.raises(RunDirectoryError, match="another attempt"):
        run_directory.lock(run, patience_s=0.5)
    held.close()
    run_directory.lock(run).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder belong to somebody else")
def test_a_run_directory_of_somebody_else_is_refused(tmp_path):
    os.chown(tmp_path, 65534, -1)
    with pytest.raises(RunDirectoryError, match="belongs to another user"):
        prepare(tmp_path, TrainConfig(), {})
    assert not list(tmp_path.iterdir())


def test_the_command_of_a_launch_can_be_typed_again(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/a/pipeline/launch/__main__.py", "--recipe", "demo", "--slurm", "comment=a b"])
    run_directory.prepare(tmp_path / "run", TrainConfig(), {})
    assert read_config(tmp_path / "run").command == "python -m pipeline.launch --recipe demo --slurm 'comment=a b'"
