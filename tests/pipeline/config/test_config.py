"""A config is complete, comes back from its file, and refuses what cannot work before anything is queued."""

import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.checks import RANGES, check
from pipeline.config.schema import AugmentConfig, ConfigError, MixConfig, OptimizerConfig, TrainConfig
from pipeline.config.serialise import difference, digest, flatten, from_dict, to_dict
from pipeline.engine.deepspeed_config import deepspeed_config
from pipeline.launch.options import LaunchError, parse
from pipeline.recipes import RECIPES
from pipeline.run import directory as run_directory
from pipeline.run.directory import RunDirectoryError
from pipeline.run.files import read_metrics
from pipeline.run.journal import Journal


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_checked_and_come_back_from_their_file(recipe: str):
    config = check(RECIPES[recipe].train(), 2)
    assert from_dict(to_dict(config)) == config
    assert RECIPES[recipe].train.__doc__
    assert "python -m pipeline.launch" in RECIPES[recipe].train.__doc__


@pytest.mark.parametrize(
    ("changes", "world_size", "words"),
    [
        ({"global_batch_size": 1000, "micro_batch_size": 32}, 32, ["1000", "32", "world_size 32", "would fit"]),
        ({"global_batch_size": 3}, 4, ["3", "--train.global-batch-size 4"]),
        ({"micro_batch_size": 0}, 1, ["micro_batch_size 0"]),
        ({"global_batch_size": 0}, 1, ["global_batch_size 0"]),
        ({"steps": 0}, 1, ["steps 0"]),
        ({"ema_decay": 1.0}, 1, ["ema_decay 1.0 must be in [0, 1)"]),
        ({"epochs": float("inf")}, 1, ["epochs inf must be greater than 0"]),
        ({"optimizer": OptimizerConfig(betas=(0.9, 1.0))}, 1, ["optimizer.betas 0.9 1.0 must be in [0, 1)"]),
        ({"augment": AugmentConfig(crop_scale=(1.0, 0.1))}, 1, ["augment.crop_scale 1.0 0.1 must begin with"]),
        ({"global_batch_size": 8}, 8, ["mixup", "micro_batch_size is 1"]),
        ({"cuda_graphs": True, "zero_stage": 3}, 1, ["cuda_graphs", "zero_stage 3"]),
        ({"cuda_graphs": True, "compile": True}, 1, ["cuda_graphs", "compile"]),
        ({"cuda_graphs": True, "gradient_checkpointing": True}, 1, ["cuda_graphs", "gradient_checkpointing"]),
    ],
)
def test_contradictions_are_refused_with_the_numbers(changes: dict, world_size: int, words: list[str]):
    with pytest.raises(ConfigError) as caught:
        check(replace(TrainConfig(), **changes), world_size)
    assert all(word in str(caught.value) for word in words), caught.value


def test_every_number_has_a_range():
    numbers = {
        name
        for name, value in flatten(to_dict(TrainConfig(steps=1, micro_batch_size=1, eval_every_steps=1))).items()
        if not isinstance(value, bool | str | None)
    }
    optional = {"model.drop_path_rate", "optimizer.clip_grad_norm"}
    # The ZeRO stage has its values, and no others.
    assert {name for _, _, names in RANGES for name in names} == (numbers | optional) - {"zero_stage"}


def test_the_global_batch_is_kept_by_accumulation():
    for world_size in (1, 2, 4, 8, 16):
        json = deepspeed_config(check(TrainConfig(), world_size), world_size)
        micro, steps = json["train_micro_batch_size_per_gpu"], json["gradient_accumulation_steps"]
        assert micro * steps * world_size == json["train_batch_size"] == 1024
        assert micro <= 128


def test_only_what_changes_the_result_is_compared():
    config = TrainConfig()
    free = replace(config, zero_stage=3, save_every_steps=7, data=replace(config.data, workers=9))
    assert difference(config, free) == []
    assert digest(config) == digest(free)
    other = replace(config, seed=5, mix=MixConfig(mixup=0.1))
    assert difference(config, other) == ["seed: 0 -> 5", "mix.mixup: 0.8 -> 0.1"]
    assert digest(config) != digest(other)


def test_a_run_directory_belongs_to_one_training(tmp_path: Path):
    run = tmp_path / "run"
    run_directory.prepare(run, TrainConfig(), {"resources": {}})
    run_directory.prepare(run, replace(TrainConfig(), zero_stage=2), {})
    assert run_directory.load(run).zero_stage == 2
    with pytest.raises(RunDirectoryError, match="seed: 0 -> 1"):
        run_directory.prepare(run, replace(TrainConfig(), seed=1), {})
    assert run_directory.load(run).seed == 0
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
    held.close()
    run_directory.lock(run).close()


def test_flags_lie_over_the_recipe():
    options = parse(["--recipe", "demo", "--train.steps", "7", "--slurm", "exclusive=true", "mail-user=a@b"])
    assert options.train.steps == 7
    assert options.train.model.name == "transxnet_n"
    assert options.resources.slurm == ("exclusive=true", "mail-user=a@b")
    assert options.resources.world_size == 2
    with pytest.raises(LaunchError, match="did you mean tiny"):
        parse(["--recipe", "tinny"])
    with pytest.raises(SystemExit):
        parse(["--train.sed", "3"])


def test_the_journal_holds_each_step_once(tmp_path: Path):
    journal = Journal(tmp_path, 0)
    for step in range(1, 6):
        assert journal.append({"step": step, "loss": step / 3}) is None
    journal.sync()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "lo')
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    journal = Journal(tmp_path, 3)
    journal.append({"step": 4, "loss": 0.0})
    journal.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path)] == [(1, 1 / 3), (2, 2 / 3), (3, 1.0), (4, 0.0)]


def test_no_checkpoint_is_ahead_of_a_journal_on_a_full_disk(tmp_path: Path):
    journal = Journal(tmp_path, 0)
    assert journal.append({"step": 1}) is None
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (15, limits[1]))
        assert journal.append({"step": 2}) is not None
        with pytest.raises(OSError):
            journal.sync()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, former)
    journal.sync()
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2]
    journal.close()
