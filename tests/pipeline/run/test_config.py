"""`config.json` of a run is read whichever version wrote it; only the training itself must be known."""

import json

import pytest

from pipeline.config.schema import ModelConfig, TrainConfig
from pipeline.config.serialise import to_dict
from pipeline.run.config import read_config
from pipeline.run.files import RunDirectoryError


def write(folder, **extra) -> None:
    train = to_dict(TrainConfig(steps=7, model=ModelConfig(name="transxnet_n")))
    (folder / "config.json").write_text(json.dumps({"train": train | extra.pop("train", {}), **extra}))


def test_the_facts_of_a_launch_are_read(tmp_path):
    dataset = {"digest": "d", "validation_digest": "v"}
    git = {"commit": "c0ffee", "dirty": True}
    write(tmp_path, total_steps=9, dataset=dataset, git=git, sweep="/runs/s", command=["launch", "--wait"])
    config = read_config(tmp_path)
    assert config.train == TrainConfig(steps=7, model=ModelConfig(name="transxnet_n"))
    assert (config.model_name, config.registry_name, config.registered_name) == ("transxnet_n", "transxnet_n", None)
    assert (config.total_steps, config.global_batch_size, config.command) == (9, 1024, "launch --wait")
    assert (config.training_digest, config.validation_digest) == ("d", "v")
    assert (config.git_commit, config.git_dirty, str(config.sweep)) == ("c0ffee", True, "/runs/s")
    assert config.training_split == ("shards", "train", None)
    assert config.validation_split == ("shards", "validation", None)


def test_a_run_of_a_newer_version_shows_its_facts_and_trains_not(tmp_path):
    write(tmp_path, train={"warp_factor": 9})
    config = read_config(tmp_path)
    assert config.train_fields["warp_factor"] == 9
    assert (config.model_name, config.total_steps) == ("transxnet_n", 7)
    with pytest.raises(RunDirectoryError, match=r"is not a configuration of this version: .*warp_factor"):
        _ = config.train


def test_a_run_of_an_older_version_has_unknown_facts(tmp_path):
    write(tmp_path)
    config = read_config(tmp_path)
    assert (config.digest, config.git_commit, config.git_dirty, config.tracking_uri) == (None, None, None, None)
    assert (config.training_digest, config.validation_digest, config.sweep, config.command) == (None, None, None, "")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "is no run directory: it has no config.json"),
        ("{", "cannot be read"),
        ('{"train": {}}', "has no model"),
        ("[1]", "has no model"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, problem):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunDirectoryError, match=problem):
        read_config(tmp_path)
